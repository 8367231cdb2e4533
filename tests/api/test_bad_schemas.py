"""The JSON Schema of every run type: what it takes, what it refuses, and the shapes that are in use."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from jobs.v1 import jobs_pb2
from jobs_service.core.run_parameters import schema
from jobs_service.model.caller import Level
from jobs_service.model.job import JobStatus, RunType
from tests.support.judge import Answer, Judge
from tests.support.world import User, World

PAYLOADS = sorted((Path(__file__).parents[1] / "payloads").glob("*.json"))
BIG = 2**53 - 1


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def datasets(world: World) -> list[int]:
    """What a caller may write; what it may read; what it may not even see."""
    return [world.dataset(), world.dataset(), world.dataset()]


@pytest.fixture(scope="module")
def owner(world: World, datasets: list[int]) -> User:
    return world.user(grants={datasets[0]: Level.WRITE, datasets[1]: Level.READ})


@pytest.fixture(scope="module")
def judge(world: World, owner: User) -> Judge:
    return Judge(world, world.client(owner))


def create(judge: Judge, run_type: str, dataset_id: int, parameters: Any) -> Answer:
    """CreateJob."""
    request = jobs_pb2.CreateJobRequest(dataset_id=dataset_id, run_parameters=parameters)
    request.run_type = jobs_pb2.RunType.Value(f"RUN_TYPE_{run_type}")
    return judge.send("CreateJob", request)


def with_source(**fields: Any) -> dict[str, Any]:
    """A SQL_TRANSFORM whose one source has these fields too; None takes one away. 0 is put for its id."""
    source = {"dataset_id": 0, "alias": "a"} | fields
    return {"sql": "x", "sources": [{key: value for key, value in source.items() if value is not None}]}


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("IMPORT", {"file_path": "a"}),
    ("IMPORT", {"temp_file_path": "a"}),
    ("IMPORT", {"file_path": "a", "temp_file_path": "b"}),
    ("IMPORT", {"file_path": "\u00e9", "anything": [1, {"else": None}]}),
    ("SAMPLING", {}),
    ("SAMPLING", {"sample_size": 1}),
    ("SAMPLING", {"sample_size": BIG}),
    *[("SAMPLING", {"method": word}) for word in ("random", "stratified", "systematic", "cluster")],
    ("SAMPLING", {"sample_size": 10, "method": "random", "seed": 1.5}),
    ("SAMPLING", {"rounds": [{}]}),
    ("SAMPLING", {"rounds": [{}] * 100}),
    ("SAMPLING", {"rounds": [{"method": "cluster", "sample_size": 5}, {"parameters": {}}]}),
    ("SAMPLING", {"rounds": [{"method": "random", "parameters": {"sample_size": 5, "seed": "x"}}]}),
    ("EXPLORATION", {}),
    ("EXPLORATION", {"table_key": ""}),
    ("EXPLORATION", {"output_format": "html"}),
    ("EXPLORATION", {"output_format": "json", "table_key": "t"}),
    ("SQL_TRANSFORM", with_source()),
    ("SQL_TRANSFORM", with_source(ref="main", table_key="t", more=[1])),
    ("SQL_TRANSFORM", {"sql": "x", "sources": [{"dataset_id": 0, "alias": "a"}] * 100}),
]

_TEXTS: list[Any] = [5, True, None, [], {}, 1.5]
_SIZES: list[Any] = ["5", True, None, [], {}, 1.5]
_NO_LIST: list[Any] = [[], {}, "x", 1, True, None]
_NO_OBJECT: list[Any] = [[], "x", 1, True, None]
_NO_ID: list[Any] = [-1, 0.5, BIG + 1, 1e300, "1", True, False, [], {}]
_NO_TEXT: list[Any] = [5, True, [], {}]
_METHODS: list[Any] = ["", "Random", "random ", 5, True, None, [], ["random"]]

BAD: list[tuple[str, dict[str, Any], list[str]]] = [
    ("IMPORT", {}, [""]),
    ("IMPORT", {"file_name": "a"}, [""]),
    ("IMPORT", {"File_path": "a"}, [""]),
    *[("IMPORT", {"file_path": wrong}, [".file_path"]) for wrong in ("", *_TEXTS)],
    *[("IMPORT", {"temp_file_path": wrong}, [".temp_file_path"]) for wrong in ("", *_TEXTS)],
    ("IMPORT", {"file_path": "a", "temp_file_path": ""}, [".temp_file_path"]),
    ("IMPORT", {"file_path": 1, "temp_file_path": 1}, [".file_path", ".temp_file_path"]),
    *[("SAMPLING", {"sample_size": wrong}, [".sample_size"]) for wrong in (0, -1, BIG + 1, 1e300, *_SIZES)],
    *[("SAMPLING", {"method": wrong}, [".method"]) for wrong in _METHODS],
    *[("SAMPLING", {"rounds": wrong}, [".rounds"]) for wrong in _NO_LIST],
    ("SAMPLING", {"rounds": [{}] * 101}, [".rounds"]),
    *[("SAMPLING", {"rounds": [{}, wrong]}, [".rounds[1]"]) for wrong in _NO_OBJECT],
    ("SAMPLING", {"rounds": [{}], "sample_size": 5}, [".sample_size"]),
    ("SAMPLING", {"rounds": [{}], "method": "random"}, [".method"]),
    ("SAMPLING", {"rounds": [{}], "method": "random", "sample_size": 5}, [".method", ".sample_size"]),
    *[
        ("SAMPLING", {"rounds": [{"sample_size": wrong}]}, [".rounds[0].sample_size"])
        for wrong in (0, -1, BIG + 1, *_SIZES)
    ],
    *[("SAMPLING", {"rounds": [{}, {}, {"method": wrong}]}, [".rounds[2].method"]) for wrong in _METHODS],
    *[("SAMPLING", {"rounds": [{"parameters": wrong}]}, [".rounds[0].parameters"]) for wrong in _NO_OBJECT],
    *[
        (
            "SAMPLING",
            {"rounds": [{"parameters": {"sample_size": wrong}}]},
            [".rounds[0].parameters.sample_size"],
        )
        for wrong in (0, -1, *_SIZES)
    ],
    ("SAMPLING", {"rounds": [{"parameters": {}, "sample_size": 5}]}, [".rounds[0].parameters"]),
    (
        "SAMPLING",
        {"rounds": [{"sample_size": 0}, {"method": "x"}, 5]},
        [".rounds[0].sample_size", ".rounds[1].method", ".rounds[2]"],
    ),
    *[("EXPLORATION", {"table_key": wrong}, [".table_key"]) for wrong in _TEXTS],
    *[("EXPLORATION", {"output_format": wrong}, [".output_format"]) for wrong in ("", "HTML", *_TEXTS)],
    ("SQL_TRANSFORM", {}, [".sql", ".sources"]),
    ("SQL_TRANSFORM", {"sql": "x"}, [".sources"]),
    *[("SQL_TRANSFORM", with_source() | {"sql": wrong}, [".sql"]) for wrong in ("", *_TEXTS)],
    *[("SQL_TRANSFORM", {"sql": "x", "sources": wrong}, [".sources"]) for wrong in _NO_LIST],
    ("SQL_TRANSFORM", {"sql": "x", "sources": [with_source()["sources"][0]] * 101}, [".sources"]),
    *[("SQL_TRANSFORM", {"sql": "x", "sources": [wrong]}, [".sources[0]"]) for wrong in _NO_OBJECT],
    ("SQL_TRANSFORM", {"sql": "x", "sources": [{}]}, [".sources[0].alias", ".sources[0].dataset_id"]),
    ("SQL_TRANSFORM", with_source(alias=None), [".sources[0].alias"]),
    ("SQL_TRANSFORM", with_source(dataset_id=None), [".sources[0].dataset_id"]),
    *[("SQL_TRANSFORM", with_source(dataset_id=wrong), [".sources[0].dataset_id"]) for wrong in _NO_ID],
    *[
        ("SQL_TRANSFORM", with_source(**{name: wrong}), [f".sources[0].{name}"])
        for name in ("alias", "ref", "table_key")
        for wrong in _NO_TEXT
    ],
    ("SQL_TRANSFORM", with_source(alias=""), [".sources[0].alias"]),
]


def _name(case: Any) -> str:
    return ascii(case)[:70]


def with_readable_source(parameters: Any, dataset_id: int) -> Any:
    """The parameters with this id for the sources that have 0."""
    if not isinstance(parameters.get("sources"), list):
        return parameters
    sources = [
        source | {"dataset_id": dataset_id}
        if isinstance(source, dict) and source.get("dataset_id") == 0 and source["dataset_id"] is not False
        else source
        for source in parameters["sources"]
    ]
    return parameters | {"sources": sources}


@pytest.mark.parametrize(("run_type", "parameters"), GOOD, ids=_name)
def test_parameters_that_fit_their_schema_pass(
    judge: Judge, datasets: list[int], run_type: str, parameters: Any
) -> None:
    sent = with_readable_source(parameters, datasets[1])
    job = create(judge, run_type, datasets[0], sent).response.job
    expected = Struct()
    expected.update(sent)
    assert judge.client.get(job.job_id).run_parameters == expected


@pytest.mark.parametrize(("run_type", "parameters", "paths"), BAD, ids=_name)
def test_parameters_that_do_not_fit_are_refused_at_their_place(
    judge: Judge, datasets: list[int], run_type: str, parameters: Any, paths: list[str]
) -> None:
    answer = create(judge, run_type, datasets[0], with_readable_source(parameters, datasets[1]))
    assert (answer.code, answer.refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert sorted(answer.fields) == [f"run_parameters{path}" for path in sorted(paths)]


@pytest.mark.parametrize("run_type", RunType)
def test_a_target_is_an_object_or_null(judge: Judge, datasets: list[int], run_type: RunType) -> None:
    good = next(parameters for name, parameters in GOOD if name == run_type)
    for target, fits in (({}, True), (None, True), ([], False), ("x", False), (1, False), (True, False)):
        parameters = with_readable_source(good, datasets[1]) | {"target": target}
        answer = create(judge, run_type, datasets[0], parameters)
        if fits:
            assert answer.code == "OK"
        else:
            assert answer.fields == ["run_parameters.target"]


@pytest.mark.parametrize("run_type", RunType)
def test_every_property_of_every_schema_is_tried(run_type: RunType) -> None:
    wrong = {path for name, _, paths in BAD if name == run_type for path in paths}
    tried = {re.sub(r"[0-9]+", "0", path) for path in wrong} | {".target"}
    for path in _properties(schema(run_type), schema(run_type)):
        assert path in tried, f"no bad example of {path}"
    assert run_type in {name for name, _ in GOOD}


def _properties(node: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    node = root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for name, inner in node.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _properties(inner, root, f"{path}.{name}")
    if "items" in node:
        yield from _properties(node["items"], root, f"{path}[0]")


def test_more_than_twenty_faults_are_cut(judge: Judge, datasets: list[int]) -> None:
    answer = create(judge, "SAMPLING", datasets[0], {"rounds": [{"sample_size": 0, "method": "x"}] * 100})
    assert len(answer.fields) == 20


def test_the_bound_that_was_broken_stands_in_the_metadata(judge: Judge, datasets: list[int]) -> None:
    for wrong, limit in ((0, 1), (BIG + 1, BIG)):
        answer = create(judge, "SAMPLING", datasets[0], {"sample_size": wrong})
        expected = {"field": "run_parameters.sample_size", "limit": str(limit)}
        assert answer.refusal.metadata == expected
    answer = create(judge, "SAMPLING", datasets[0], {"rounds": [{}] * 101})
    assert answer.refusal.metadata == {"field": "run_parameters.rounds", "limit": "100"}


def test_a_refusal_never_quotes_the_parameters(judge: Judge, datasets: list[int]) -> None:
    secret = "only-the-worker-shall-know"
    for name, parameters in (
        ("SAMPLING", {"method": secret, "sample_size": secret, "rounds": secret}),
        ("EXPLORATION", {"output_format": secret, "target": secret, "dataset_id": secret}),
        ("SQL_TRANSFORM", {"sql": [secret], "sources": secret, "user_id": secret}),
        ("IMPORT", {"file_path": [secret], "n": secret + "\0"}),
    ):
        answer = create(judge, name, datasets[0], parameters)
        assert secret not in repr(answer)


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_source_that_one_may_not_read_is_refused_whether_it_exists_or_not(
    judge: Judge, datasets: list[int], place: str
) -> None:
    for secret in (datasets[2], BIG):
        ids = [secret, datasets[1]] if place == "first" else [datasets[1], datasets[0], secret]
        sources = [{"dataset_id": each, "alias": "a"} for each in ids]
        answer = create(judge, "SQL_TRANSFORM", datasets[0], {"sql": "x", "sources": sources})
        assert (answer.code, answer.refusal.reason) == ("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED")
        assert answer.refusal.metadata == {"dataset_id": str(secret), "required_permission": "read"}


def _payload(file: Path, datasets: list[int], owner: User) -> dict[str, Any]:
    """A payload with ids that exist here for those in the file: data sets 1 and 2, user 3."""
    known = {"dataset_id": {1: datasets[0], 2: datasets[1]}, "user_id": {3: owner.user_id}}

    def replaced(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: known[key][value] if key in known else value for key, value in pairs}

    loaded: dict[str, Any] = json.loads(file.read_text(), object_pairs_hook=replaced)
    return loaded


@pytest.mark.parametrize("file", PAYLOADS, ids=lambda file: file.stem)
def test_the_shapes_in_use_pass_and_come_back_as_they_went_in(
    judge: Judge, datasets: list[int], owner: User, file: Path
) -> None:
    payload = _payload(file, datasets, owner)
    parameters = payload["run_parameters"]
    job = create(judge, payload["run_type"], datasets[0], parameters).response.job
    assert MessageToDict(judge.client.get(job.job_id).run_parameters) == parameters
    same = "SELECT run_parameters = %s::jsonb FROM jobs WHERE job_id = %s"
    assert judge.world.sql.execute(same, (json.dumps(parameters), job.job_id)).fetchone() == (True,)


@pytest.mark.parametrize("file", PAYLOADS, ids=lambda file: file.stem)
def test_the_results_in_use_come_back_as_they_were_written(
    judge: Judge, datasets: list[int], owner: User, file: Path
) -> None:
    payload = _payload(file, datasets, owner)
    job = create(judge, payload["run_type"], datasets[0], payload["run_parameters"]).response.job
    judge.world.set_status(job.job_id, JobStatus.COMPLETED)
    write = "UPDATE jobs SET output_summary = %s::jsonb WHERE job_id = %s"
    judge.world.sql.execute(write, (json.dumps(payload["output_summary"]), job.job_id))
    for shown in (judge.client.get(job.job_id), judge.client.status(job.job_id)):
        assert MessageToDict(shown.output_summary) == payload["output_summary"]


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("import_upload", "run_parameters->>'dataset_id'", "the data set"),
        ("import_upload", "run_parameters->>'file_size'", 18_274_651),
        ("sampling_rounds", "run_parameters->>'dataset_id'", "the data set"),
        ("sampling_rounds", "run_parameters#>>'{rounds,0,parameters,sample_size}'", 5000),
        ("sampling_rounds", "run_parameters#>>'{rounds,2,parameters,num_clusters}'", 12),
        ("sql_transform", "run_parameters#>>'{sources,0,dataset_id}'", "the data set"),
        ("sql_transform", "run_parameters#>>'{target,dataset_id}'", "the data set"),
        ("exploration", "run_parameters#>>'{profile_config,samples,head}'", 10),
    ],
)
def test_numbers_can_be_read_as_integers_in_sql(
    judge: Judge, datasets: list[int], owner: User, file: str, path: str, value: int | str
) -> None:
    payload = _payload(Path(__file__).parents[1] / "payloads" / f"{file}.json", datasets, owner)
    job = create(judge, payload["run_type"], datasets[0], payload["run_parameters"]).response.job
    query = f"SELECT ({path})::int FROM jobs WHERE job_id = %s"
    expected = datasets[0] if isinstance(value, str) else value
    assert judge.world.sql.execute(query.encode(), (job.job_id,)).fetchone() == (expected,)


def test_there_is_a_payload_of_every_run_type() -> None:
    assert {json.loads(file.read_text())["run_type"] for file in PAYLOADS} == set(RunType)
