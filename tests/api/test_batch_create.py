"""BatchCreateJobs: all of the jobs or none, in the order asked."""

import uuid
from typing import Any

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.client import Client, refused
from tests.support.world import World

BASIC = jobs_pb2.JOB_VIEW_BASIC


def _entries(dataset: int, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"dataset_id": dataset, "description": f"number {n}"} | fields for n in range(count)]


def _with_ids(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry | {"request_id": str(uuid.uuid4())} for entry in entries]


@pytest.fixture
def dataset(world: World) -> int:
    return world.dataset()


@pytest.fixture
def client(world: World, dataset: int) -> Client:
    return world.client(world.user(grants={dataset: Level.WRITE}))


def test_a_thousand_jobs_are_made_in_the_order_of_their_entries(
    world: World, client: Client, dataset: int
) -> None:
    answer = client.batch_create(_entries(dataset, 1000))

    jobs = [result.job for result in answer.results]
    assert [job.description for job in jobs] == [f"number {n}" for n in range(1000)]
    assert [job.job_id for job in jobs] == sorted({job.job_id for job in jobs})
    assert not answer.shortened
    for job in (jobs[0], jobs[500], jobs[-1]):
        assert job == client.get(job.job_id, BASIC)
        assert [event["type"] for event in world.events(job.job_id)] == ["CREATED"]


def test_one_entry_that_is_refused_spoils_them_all_and_is_named(
    world: World, client: Client, dataset: int
) -> None:
    closed, before = world.dataset(), world.counts()
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as denied:
        client.batch_create([*_entries(dataset, 999), {"dataset_id": closed}])
    assert denied.it.metadata == {"dataset_id": str(closed), "required_permission": "write", "index": "999"}
    assert denied.it.message.startswith("requests[999]: ")
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as wrong:
        client.batch_create(
            [*_entries(dataset, 7), {"dataset_id": dataset, "priority": 101, "request_id": "x"}]
        )
    assert set(wrong.it.violations) == {"requests[7].priority", "requests[7].request_id"}
    assert wrong.it.metadata == {"field": "requests[7].priority", "limit": "100", "index": "7"}
    assert world.counts() == before


def test_what_is_wrong_with_all_entries_is_told_at_once(client: Client, dataset: int) -> None:
    wrong = {"dataset_id": dataset, "priority": 101, "request_id": "x"}
    large = {"dataset_id": dataset, "run_parameters": {"file_path": "x" * (256 * 1024)}}
    good = {"dataset_id": dataset}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as several:
        client.batch_create([good, wrong, good, {"dataset_id": dataset, "max_attempts": 0}, large, wrong])
    assert set(several.it.violations) == {
        "requests[1].priority",
        "requests[1].request_id",
        "requests[3].max_attempts",
    }
    assert several.it.metadata == {"field": "requests[1].priority", "limit": "100", "index": "1"}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as many:
        client.batch_create([wrong] * 1000)
    assert len(many.it.violations) == 20


def test_parameters_of_an_entry_that_are_too_large_are_refused_with_its_place(
    client: Client, dataset: int
) -> None:
    large = {"file_path": "x" * (256 * 1024)}
    with refused("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE") as wrong:
        client.batch_create([*_entries(dataset, 2), {"dataset_id": dataset, "run_parameters": large}])
    assert wrong.it.metadata == {"field": "requests[2].run_parameters", "limit": "262144", "index": "2"}


def test_what_only_the_database_shows_of_an_entry_has_its_place_too(
    world: World, client: Client, dataset: int
) -> None:
    owner = world.user(grants={dataset: Level.WRITE})
    program = world.client(world.user(Role.SERVICE), on_behalf_of=owner)
    other = {"file_path": "a.csv", "user_id": owner.user_id + 1}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as wrong:
        program.batch_create([*_entries(dataset, 1), {"dataset_id": dataset, "run_parameters": other}])
    assert set(wrong.it.violations) == {"requests[1].run_parameters.user_id"}
    assert wrong.it.metadata["index"] == "1"


def test_a_refusal_of_the_caller_names_no_entry(world: World, dataset: int) -> None:
    user, other = world.user(grants={dataset: Level.WRITE}), world.user()
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED") as denied:
        world.client(user, on_behalf_of=other).batch_create(_entries(dataset, 2))
    assert denied.it.metadata == {"required_role": "service"}


def test_a_path_in_an_entry_is_cut_like_any_other(client: Client, dataset: int) -> None:
    deep: Any = 0.5
    for _ in range(3):
        deep = {"k" * 40: deep}
    parameters = {"rounds": [{"parameters": {"sample_size": "x"} | deep}], "sample_size": "no number"}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as wrong:
        client.batch_create(
            [{"dataset_id": dataset, "run_type": jobs_pb2.RUN_TYPE_SAMPLING, "run_parameters": parameters}]
        )
    assert all(path.startswith("requests[0].run_parameters") for path in wrong.it.violations)
    assert all(len(path) <= 120 for path in wrong.it.violations)


def test_the_whole_call_repeated_answers_the_jobs_made_by_the_first(
    world: World, client: Client, dataset: int
) -> None:
    entries = _with_ids(_entries(dataset, 100))
    first = client.batch_create(entries)
    before = world.counts()

    again = client.batch_create(entries)

    assert [result.replayed for result in first.results] == [False] * 100
    assert [result.replayed for result in again.results] == [True] * 100
    assert [result.job for result in again.results] == [result.job for result in first.results]
    assert world.counts() == before


def test_entries_that_are_there_already_are_answered_beside_new_ones(client: Client, dataset: int) -> None:
    one, two, three = _with_ids(_entries(dataset, 3))
    made = client.create(**two).job
    answer = client.batch_create([one, two, three])
    assert [result.replayed for result in answer.results] == [False, True, False]
    assert answer.results[1].job.job_id == made.job_id


def test_a_request_id_of_another_request_refuses_them_all(world: World, client: Client, dataset: int) -> None:
    one, two = _with_ids(_entries(dataset, 2))
    made = client.create(**(two | {"description": "another"})).job
    before = world.counts()
    with refused("ALREADY_EXISTS", "REQUEST_ID_CONFLICT") as conflict:
        client.batch_create([one, two])
    assert conflict.it.metadata == {
        "request_id": two["request_id"],
        "job_id": made.job_id,
        "index": "1",
    }
    assert world.counts() == before


@pytest.mark.parametrize("description", ["number 0", "another"])
def test_a_request_id_may_stand_in_one_entry_only(client: Client, dataset: int, description: str) -> None:
    [entry] = _with_ids(_entries(dataset, 1))
    other = entry | {"description": description, "request_id": entry["request_id"].upper()}
    with refused("ALREADY_EXISTS", "REQUEST_ID_CONFLICT") as conflict:
        client.batch_create([entry, *_entries(dataset, 1), other])
    assert conflict.it.metadata == {"request_id": entry["request_id"], "index": "2"}
    assert not client.create(**entry).replayed


def test_validating_checks_everything_and_writes_nothing(world: World, client: Client, dataset: int) -> None:
    before, closed = world.counts(), world.dataset()
    entries = _entries(dataset, 3, validate_only=True)

    answer = client.batch_create(entries)

    for number, result in enumerate(answer.results):
        assert (result.job.job_id, result.job.description) == ("", f"number {number}")
        assert not any(result.job.HasField(name) for name in ("create_time", "available_time", "update_time"))
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as denied:
        client.batch_create([*entries, {"dataset_id": closed, "validate_only": True}])
    assert denied.it.metadata["index"] == "3"
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as wrong:
        client.batch_create([*entries, {"dataset_id": dataset}])
    assert set(wrong.it.violations) == {"requests[3].validate_only"}
    assert world.counts() == before


def test_a_program_makes_them_for_their_owner(world: World, dataset: int) -> None:
    owner, program = world.user(grants={dataset: Level.WRITE}), world.user(Role.SERVICE)
    answer = world.client(program, on_behalf_of=owner).batch_create(_entries(dataset, 2))
    found = world.client(owner).batch_get([result.job.job_id for result in answer.results])
    assert [result.job for result in found.results] == [result.job for result in answer.results]
    assert {result.job.user_soeid for result in found.results} == {owner.soeid}
    assert {result.job.creator_soeid for result in found.results} == {program.soeid}


def test_a_graph_is_one_call(world: World, client: Client, dataset: int) -> None:
    outside = client.create(dataset_id=dataset).job.job_id
    entries = _entries(dataset, 4)
    entries[1] |= {"depends_on_indexes": [0]}
    entries[2] |= {"depends_on_indexes": [0], "depends_on_job_ids": [outside]}
    entries[3] |= {"depends_on_indexes": [1, 2]}

    answer = client.batch_create(entries)

    first, second, third, last = (result.job for result in answer.results)
    assert first.waiting_on_job_ids == []
    assert second.waiting_on_job_ids == [first.job_id]
    assert third.waiting_on_job_ids == sorted([first.job_id, outside])
    assert last.waiting_on_job_ids == sorted([second.job_id, third.job_id])
    for job in (first, second, third, last):
        assert client.get(job.job_id, BASIC) == job
    queued = world.sql.execute("SELECT job_id::text FROM job_queue WHERE dataset_id = %s", (dataset,))
    assert {row[0] for row in queued} == {outside, first.job_id}


def test_a_graph_repeated_answers_the_same_jobs(world: World, client: Client, dataset: int) -> None:
    entries = _with_ids(_entries(dataset, 50))
    for place in range(1, 50):
        entries[place] |= {"depends_on_indexes": [place - 1]}
    first, before = client.batch_create(entries), world.counts()
    again = client.batch_create(entries)
    assert [result.job for result in again.results] == [result.job for result in first.results]
    assert world.counts() == before


def test_one_that_nobody_may_wait_for_spoils_the_graph(world: World, client: Client, dataset: int) -> None:
    ended = client.create(dataset_id=dataset).job.job_id
    client.cancel(ended)
    nowhere, before = str(uuid.uuid4()), world.counts()
    entries = _entries(dataset, 3)
    entries[1] |= {"depends_on_indexes": [0]}
    with refused("NOT_FOUND", "DEPENDENCY_NOT_FOUND") as missing:
        client.batch_create([*entries[:2], entries[2] | {"depends_on_job_ids": [nowhere]}])
    assert missing.it.metadata == {"job_id": nowhere, "index": "2"}
    with refused("FAILED_PRECONDITION", "DEPENDENCY_NOT_SATISFIABLE") as hopeless:
        client.batch_create([*entries[:2], entries[2] | {"depends_on_job_ids": [ended]}])
    assert hopeless.it.metadata == {"job_id": ended, "status": "CANCELLED", "index": "2"}
    assert world.counts() == before


def test_an_answer_that_would_be_too_large_has_its_last_jobs_shortened(client: Client, dataset: int) -> None:
    entries = _entries(dataset, 1000, external_id="x" * 128)
    for place in range(100, 1000):
        entries[place] |= {"depends_on_indexes": list(range(100))}

    answer = client.batch_create(entries)

    assert answer.ByteSize() < 3 * 2**20
    whole = [result.job.description != "" for result in answer.results]
    assert whole == [True] * (1000 - answer.shortened) + [False] * answer.shortened
    assert 0 < answer.shortened < 900
    last = client.get(answer.results[-1].job.job_id, BASIC)
    assert len(last.waiting_on_job_ids) == 100
    assert answer.results[-1].job == jobs_pb2.Job(
        job_id=last.job_id,
        run_type=last.run_type,
        status=last.status,
        dataset_id=last.dataset_id,
        create_time=last.create_time,
        version=last.version,
    )
