"""The queue: who is in it, in which order, and who comes in and goes out when."""

from datetime import timedelta
from uuid import uuid4

from jobs_service.model.job import JobStatus, RunType
from tests.support.queued import flood, limit, new_insert, put, queue
from tests.support.world import World

HOUR = timedelta(hours=1)


def test_a_new_job_is_in_the_queue_with_all_that_a_claim_wants_to_know(stored_world: World) -> None:
    dataset = stored_world.dataset()
    one = new_insert(dataset, RunType.SAMPLING, priority=7, payload_bytes=1234)
    inserted = put(stored_world, [one])
    found = queue(stored_world)[one.job_id]
    assert found.pop("available_time") == inserted[one.job_id].create_time
    assert found == {
        "job_id": one.job_id,
        "run_type": "SAMPLING",
        "neg_priority": -7,
        "turn": 1,
        "dataset_id": dataset,
        "payload_bytes": 1234,
        "ready": True,
        "limited": False,
        "held": False,
    }
    assert inserted[one.job_id].claimable


def test_a_job_that_starts_later_is_in_the_queue_and_not_ready(stored_world: World) -> None:
    one = new_insert(stored_world.dataset(), start_delay=HOUR)
    inserted = put(stored_world, [one])[one.job_id]
    found = queue(stored_world)[one.job_id]
    assert (found["ready"], found["available_time"]) == (False, inserted.create_time + HOUR)
    assert not inserted.claimable


def test_a_job_that_waits_for_another_is_not_in_the_queue_until_it_is_put_there(stored_world: World) -> None:
    one = new_insert(stored_world.dataset(), waits=True)
    put(stored_world, [one])
    assert queue(stored_world) == {}
    with stored_world.database.transaction() as tx:
        first = tx.queue.enqueue([one.job_id])
        again = tx.queue.enqueue([one.job_id])
    assert first.run_types == {RunType.IMPORT}
    assert again.run_types == frozenset()
    assert list(queue(stored_world)) == [one.job_id]


def test_only_pending_jobs_are_put_into_the_queue(stored_world: World) -> None:
    dataset = stored_world.dataset()
    jobs = {status: new_insert(dataset, waits=True) for status in JobStatus}
    put(stored_world, list(jobs.values()))
    for status, one in jobs.items():
        stored_world.set_status(one.job_id, status)
    with stored_world.database.transaction() as tx:
        tx.queue.enqueue([uuid4(), *(one.job_id for one in jobs.values())])
    assert list(queue(stored_world)) == [jobs[JobStatus.PENDING].job_id]


def test_who_is_removed_from_the_queue_gives_its_place_back_if_it_had_one(stored_world: World) -> None:
    limited, free = stored_world.dataset(), stored_world.dataset()
    limit(stored_world, limited, 1)
    placed, held = flood(stored_world, limited, 2)
    [other] = flood(stored_world, free, 1)
    with stored_world.database.transaction() as tx:
        assert tx.queue.remove([other, held, uuid4()]) == frozenset()
        assert tx.queue.remove([placed]) == {limited}
    assert queue(stored_world) == {}


def test_the_jobs_of_a_data_set_take_turns_with_those_of_others(stored_world: World) -> None:
    hot, rare = stored_world.dataset(), stored_world.dataset()
    first = flood(stored_world, hot, 3)
    second = flood(stored_world, hot, 2)
    third = flood(stored_world, rare, 2)
    other = flood(stored_world, hot, 1, run_type=RunType.SAMPLING)
    turns = {job_id: row["turn"] for job_id, row in queue(stored_world).items()}
    assert [turns[job_id] for job_id in first + second] == [1, 2, 3, 4, 5]
    assert [turns[job_id] for job_id in third] == [1, 2]
    assert [turns[job_id] for job_id in other] == [1]


def test_a_new_job_comes_after_the_turn_now_being_served(stored_world: World) -> None:
    hot, rare = stored_world.dataset(), stored_world.dataset()
    flood(stored_world, hot, 3)
    stored_world.sql.execute("SELECT setval('job_turn_import', 2)")
    [of_rare] = flood(stored_world, rare, 1)
    [of_hot] = flood(stored_world, hot, 1)
    turns = {job_id: row["turn"] for job_id, row in queue(stored_world).items()}
    assert (turns[of_rare], turns[of_hot]) == (3, 4)


def test_one_batch_gives_its_jobs_turns_by_data_set_and_run_type_the_urgent_first(
    stored_world: World,
) -> None:
    one, two = stored_world.dataset(), stored_world.dataset()
    batch = [
        new_insert(one),
        new_insert(two),
        new_insert(one),
        new_insert(one, RunType.EXPLORATION),
        new_insert(one, priority=1),
        new_insert(two),
    ]
    put(stored_world, batch)
    turns = {job_id: row["turn"] for job_id, row in queue(stored_world).items()}
    assert [turns[item.job_id] for item in batch] == [2, 1, 3, 1, 1, 2]


def test_a_job_that_a_request_id_had_made_before_is_not_queued_again(stored_world: World) -> None:
    dataset, request_id = stored_world.dataset(), uuid4()
    first, again = (new_insert(dataset, request_id=request_id) for _ in range(2))
    put(stored_world, [first])
    assert put(stored_world, [again]) == {}
    assert list(queue(stored_world)) == [first.job_id]
