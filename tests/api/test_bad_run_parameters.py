"""run_parameters of any run type: what no JSON of ours may hold, how large it may be, and whose it is."""

import json
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.judge import Answer, Judge, message, tagged
from tests.support.world import User, World

COMMIT = "9f2c4a7d0b1e3f5a6c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d"
LIMIT = 256 * 1024
NO_ID: list[Any] = [0, 1, -1, True, False, 1.5, 1e300, "", "1", [], {}]
NO_OBJECT: list[Any] = [0, 1, True, 1.5, "", "x", [], [{"dataset_id": 1}]]
NO_COMMIT: list[Any] = ["", "main", COMMIT[:-1], COMMIT + "0", 5, True, [COMMIT], {}]
DATASET, OWNER = object(), object()
"""Stand for the ids of the request's data set and of its owner in the tables below."""


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def dataset(world: World) -> int:
    return world.dataset()


@pytest.fixture(scope="module")
def owner(world: World, dataset: int) -> User:
    world.user()  # the owner is not user 1, whom the tables below name as another
    return world.user(grants={dataset: Level.WRITE})


@pytest.fixture(scope="module")
def ids(dataset: int, owner: User) -> dict[object, int]:
    """What DATASET and OWNER stand for."""
    return {DATASET: dataset, OWNER: owner.user_id}


@pytest.fixture(scope="module")
def judge(world: World, owner: User) -> Judge:
    return Judge(world, world.client(owner))


def create(judge: Judge, dataset: int, parameters: Any, **more: Any) -> Answer:
    """CreateJob of an exploration, whose schema demands nothing."""
    fields = {"dataset_id": dataset, "run_type": jobs_pb2.RUN_TYPE_EXPLORATION, "run_parameters": parameters}
    return judge.send("CreateJob", message("CreateJob", **(fields | more)))


def compact(parameters: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(parameters, separators=(",", ":"), ensure_ascii=False).encode()


def stored(world: World, job_id: str) -> Any:
    """run_parameters as they stand in the database."""
    row = world.sql.execute("SELECT run_parameters::text FROM jobs WHERE job_id = %s", (job_id,)).fetchone()
    assert row is not None
    # Postgres writes 1e300 as an integer of 301 digits; Python would compare that exactly.
    return json.loads(row[0], parse_int=float)


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"n": math.nan}, "run_parameters.n"),
        ({"n": math.inf}, "run_parameters.n"),
        ({"n": -math.inf}, "run_parameters.n"),
        ({"a": [0, {"b": math.nan}]}, "run_parameters.a[1].b"),
        ({"dataset_id": math.nan}, "run_parameters.dataset_id"),
        ({"t": "\0"}, "run_parameters.t"),
        ({"t": ["a", "b\0c"]}, "run_parameters.t[1]"),
        ({"\0": 1}, 'run_parameters["\\u0000"]'),
        ({"a": {"b\0": {}}}, 'run_parameters.a["b\\u0000"]'),
        ({"a.b": math.nan}, 'run_parameters["a.b"]'),
        ({"a.b": {"c": math.nan}}, 'run_parameters["a.b"].c'),
        ({"": math.nan}, 'run_parameters[""]'),
        ({'"]': math.nan}, 'run_parameters["\\"]"]'),
        ({"\u00e9": math.nan}, 'run_parameters["\\u00e9"]'),
        ({"a\n": math.nan}, 'run_parameters["a\\n"]'),
    ],
    ids=repr,
)
def test_what_is_no_json_of_ours_is_refused_at_its_place(
    judge: Judge, dataset: int, parameters: Any, path: str
) -> None:
    answer = create(judge, dataset, parameters)
    assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", [path])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"": ""},
        {"a.b": [[], {}, None, True, False]},
        {"numbers": [0, 5, -5, 0.5, 2**53, -(2**53), 12.482, 1e300, 5e-324, 1.7976931348623157e308]},
        {"texts": ["\u0001\u001f\u007f\u2028", "\ud7ff\ue000\uffff", "\U0010ffff", "' -- \\ \" %s {}"]},
        {"\u00e9\u20ac\U0001f600": "\u00e9\u20ac\U0001f600"},
        {"__proto__": {}, "constructor": [], "$ref": "#/x", "@type": "x"},
        {"k" * 10_000: 1},
        {"many": {f"k{number}": number for number in range(5000)}},
    ],
    ids=lambda parameters: ascii(parameters)[:60],
)
def test_any_other_json_comes_back_as_it_went_in(judge: Judge, dataset: int, parameters: Any) -> None:
    job = create(judge, dataset, parameters).response.job
    sent = Struct()
    sent.update(parameters)
    assert job.run_parameters == sent
    assert judge.client.get(job.job_id).run_parameters == sent
    assert stored(judge.world, job.job_id) == parameters


def nest(levels: int, *, lists: bool = False) -> Any:
    """run_parameters of so many levels, the object itself being the first."""
    value: Any = [] if lists else {}
    for _ in range(levels - 2):
        value = [value] if lists else {"a": value}
    return {"a": value}


@pytest.mark.parametrize("lists", [False, True], ids=["objects", "lists"])
@pytest.mark.parametrize("levels", [2, 15, 16])
def test_sixteen_levels_pass(judge: Judge, dataset: int, levels: int, lists: bool) -> None:
    job = create(judge, dataset, nest(levels, lists=lists)).response.job
    assert stored(judge.world, job.job_id) == nest(levels, lists=lists)


@pytest.mark.parametrize("lists", [False, True], ids=["objects", "lists"])
@pytest.mark.parametrize("levels", [17, 18, 30])
def test_more_levels_are_refused(judge: Judge, dataset: int, levels: int, lists: bool) -> None:
    answer = create(judge, dataset, nest(levels, lists=lists))
    path = "run_parameters" + (".a" + "[0]" * 15 if lists else ".a" * 16)
    assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", [path])
    assert answer.refusal.metadata == {"field": path, "limit": "16"}


def deep(levels: int, *, lists: bool) -> bytes:
    """A Struct of so many levels on the wire, deeper than protobuf itself would write."""
    inner = b""
    for _ in range(levels):
        # Value.list_value of ListValue.values, or Value.struct_value of one entry of Struct.fields.
        item = tagged(1, 2, inner) if lists else tagged(1, 2, tagged(1, 2, b"a") + tagged(2, 2, inner))
        inner = tagged(6 if lists else 5, 2, item)
    return tagged(1, 2, tagged(1, 2, b"a") + tagged(2, 2, inner))


@pytest.mark.parametrize("lists", [False, True], ids=["objects", "lists"])
@pytest.mark.parametrize("levels", [33, 50, 100, 1000, 10_000])
def test_what_is_too_deep_to_parse_is_an_invalid_request(
    judge: Judge, dataset: int, levels: int, lists: bool
) -> None:
    base = jobs_pb2.CreateJobRequest(dataset_id=dataset, run_type=jobs_pb2.RUN_TYPE_EXPLORATION)
    answer = judge.send("CreateJob", base.SerializeToString() + tagged(4, 2, deep(levels, lists=lists)))
    assert answer.refusal.reason == "INVALID_FIELD"
    if levels >= 50 or not lists:
        assert answer.fields == ["request"]


def filled(size: int, kind: str) -> Any:
    """run_parameters that are exactly so many bytes as compact JSON."""
    if kind == "digits":
        # What protobuf needs most room for: 5.5 bytes for each of JSON.
        odd = (size - len(compact({"a": []}))) % 2 == 0
        parameters: dict[str, Any] = {"a": [1] * ((size - 6) // 2), **({"b": 1} if odd else {})}
        extra = len(compact(parameters)) - size
        parameters["a"] = parameters["a"][: len(parameters["a"]) - (extra + 1) // 2]
        parameters["a"][0] *= 10 ** (size - len(compact(parameters)))
        return parameters
    letter = {"text": "x", "two bytes": "\u00e9", "four bytes": "\U0001f600", "escapes": "\n"}[kind]
    width = len(compact(letter)) - 2
    room = size - len(compact({"k": ""}))
    return {"k": letter * (room // width) + "x" * (room % width)}


KINDS = ["text", "two bytes", "four bytes", "escapes", "digits"]


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_256_kib_of_json_pass(judge: Judge, dataset: int, kind: str) -> None:
    parameters = filled(LIMIT, kind)
    assert len(compact(parameters)) == LIMIT
    job = create(judge, dataset, parameters).response.job
    assert judge.client.get(job.job_id) == job
    assert stored(judge.world, job.job_id) == parameters


@pytest.mark.parametrize("size", [LIMIT + 1, 300 * 1024], ids=["a byte more", "300 KiB"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_than_256_kib_are_too_large(judge: Judge, dataset: int, kind: str, size: int) -> None:
    parameters = filled(size, kind)
    assert len(compact(parameters)) == size
    answer = create(judge, dataset, parameters)
    assert (answer.code, answer.refusal.reason) == ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE")
    assert answer.refusal.metadata == {"field": "run_parameters", "limit": str(LIMIT)}


def test_the_size_comes_before_everything_else(judge: Judge) -> None:
    answer = create(judge, 0, {"k": "x" * LIMIT, "n": math.nan, "dataset_id": "x"}, priority=-1)
    assert (answer.refusal.reason, answer.fields) == ("PAYLOAD_TOO_LARGE", ["run_parameters"])


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        (Struct(fields={"k": Value()}), "run_parameters.k"),
        (
            Struct(fields={"k": Value(list_value=ListValue(values=[Value(bool_value=True), Value()]))}),
            "run_parameters.k[1]",
        ),
        (
            Struct(fields={"k": Value(struct_value=Struct(fields={"a.b": Value()}))}),
            'run_parameters.k["a.b"]',
        ),
    ],
    ids=["at the top", "in a list", "in an object"],
)
@pytest.mark.parametrize("run_type", [1, 2, 3, 4])
def test_a_value_without_a_kind_is_refused_at_its_place_and_for_nothing_else(
    judge: Judge, dataset: int, run_type: int, parameters: Struct, path: str
) -> None:
    whole = Struct()
    source: Any = {"dataset_id": dataset, "alias": "a"}
    whole.update({"file_path": "a.csv", "sql": "VALUES (1)", "sources": [source]})
    whole.MergeFrom(parameters)
    request = message("CreateJob", dataset_id=dataset, run_type=run_type, run_parameters=whole)
    answer = judge.send("CreateJob", request)
    assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", [path])


def test_twenty_faults_are_reported_and_no_more(judge: Judge, dataset: int) -> None:
    answer = create(judge, dataset, {f"k{number}": math.nan for number in range(25)})
    assert len(answer.fields) == 20
    assert set(answer.fields) <= {f"run_parameters.k{number}" for number in range(25)}


def test_twenty_faults_at_the_longest_paths_fit_into_the_details(judge: Judge, dataset: int) -> None:
    faults = {f"{number:02}" + "\U0001f600" * 300: "\0" for number in range(30)}
    answer = create(judge, dataset, faults, description="x" * 1001)
    assert 5 <= len(answer.fields) <= 20
    assert answer.fields[0] == "description"
    assert {len(path) for path in answer.fields[1:]} == {120}


def test_a_path_over_120_characters_is_cut(judge: Judge, dataset: int) -> None:
    room = 120 - len("run_parameters.")
    assert create(judge, dataset, {"k" * room: math.nan}).fields == ["run_parameters." + "k" * room]
    cut = "run_parameters." + "k" * (room - 3) + "..."
    assert create(judge, dataset, {"k" * (room + 1): math.nan}).fields == [cut]


def with_ids(value: Any, ids: dict[object, int]) -> Any:
    """The value with the ids that DATASET and OWNER stand for."""
    if isinstance(value, dict):
        return {key: with_ids(item, ids) for key, item in value.items()}
    return ids[value] if value is DATASET or value is OWNER else value


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        *[({name: wrong}, name) for name in ("dataset_id", "user_id") for wrong in NO_ID],
        *[({"target": {"dataset_id": wrong}}, "target.dataset_id") for wrong in NO_ID],
        *[({"target": wrong}, "target") for wrong in NO_OBJECT],
        *[({"source_commit_id": wrong}, "source_commit_id") for wrong in NO_COMMIT],
    ],
    ids=repr,
)
def test_parameters_that_name_something_else_are_refused(
    judge: Judge, dataset: int, parameters: Any, path: str
) -> None:
    answer = create(judge, dataset, parameters, source_commit_id=COMMIT)
    assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", [f"run_parameters.{path}"])


@pytest.mark.parametrize("path", ["dataset_id", "user_id", "target.dataset_id"])
def test_the_right_id_as_a_text_or_a_little_off_is_refused(
    judge: Judge, dataset: int, ids: dict[object, int], path: str
) -> None:
    right = ids[OWNER if path == "user_id" else DATASET]
    for wrong in (str(right), right + 0.5, right + 1, -right, [right], {"id": right}, f" {right}"):
        *around, name = path.split(".")
        parameters: Any = {name: wrong}
        answer = create(judge, dataset, {around[0]: parameters} if around else parameters)
        assert answer.fields == [f"run_parameters.{path}"], wrong


@pytest.mark.parametrize(
    "parameters",
    [
        {"dataset_id": DATASET},
        {"user_id": OWNER},
        {"source_commit_id": COMMIT},
        {"source_commit_id": COMMIT.upper()},
        {"target": {"dataset_id": DATASET}},
        {"target": {}},
        {"target": {"dataset_id": None, "user_id": 1, "source_commit_id": "main"}},
        {"dataset_id": None, "user_id": None, "source_commit_id": None, "target": None},
        {"dataset_id": DATASET, "user_id": OWNER, "target": {"dataset_id": DATASET}},
        {"other": {"dataset_id": 1, "user_id": 1}, "Dataset_id": 1},
    ],
    ids=", ".join,
)
def test_parameters_that_agree_or_say_nothing_pass(
    judge: Judge, dataset: int, ids: dict[object, int], parameters: Any
) -> None:
    assert create(judge, dataset, with_ids(parameters, ids), source_commit_id=COMMIT).code == "OK"


def test_a_commit_in_the_parameters_alone_is_the_workers_affair(judge: Judge, dataset: int) -> None:
    assert create(judge, dataset, {"source_commit_id": "main"}).code == "OK"


def test_on_behalf_of_a_user_the_user_id_is_the_users(judge: Judge, dataset: int, owner: User) -> None:
    program = judge.world.user(Role.SERVICE)
    client = judge.world.client(program, on_behalf_of=owner)
    for user_id, code in ((owner.user_id, "OK"), (program.user_id, "INVALID_ARGUMENT")):
        request = message("CreateJob", dataset_id=dataset, run_type=3, run_parameters={"user_id": user_id})
        assert judge.send("CreateJob", request, metadata=client.metadata).code == code
