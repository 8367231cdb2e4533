"""What upkeep brings into the queue and takes out of it, beside others who do the same."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest

from jobs_service.core.signals import Signals
from jobs_service.model.job import JobStatus, RunType
from jobs_service.upkeep import adopt_jobs, promote_jobs
from jobs_service.upkeep.adopt_jobs import AdoptJobs
from jobs_service.upkeep.promote_jobs import PromoteJobs
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed_ids, flood, limit, new_insert, put, queue
from tests.support.world import World

HOUR = timedelta(hours=1)
# As release 0.1.0 writes it.
INSERT_JOB = """
INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority, payload_bytes,
                  run_parameters, create_time)
     SELECT gen_random_uuid(), %(run_type)s, 'PENDING', %(dataset)s, 1, 1, %(priority)s, 2, '{}',
            now() + n * interval '1 ms'
       FROM generate_series(1, %(jobs)s) n
  RETURNING job_id, create_time"""


def old_jobs(
    world: World, dataset: int, jobs: int, run_type: RunType = RunType.IMPORT, priority: int = 0
) -> list[UUID]:
    """Jobs that an old replica has made, the oldest first."""
    values = {"dataset": dataset, "jobs": jobs, "run_type": run_type.value, "priority": priority}
    made = world.sql.execute(INSERT_JOB, values).fetchall()
    return [row[0] for row in sorted(made, key=lambda row: row[1])]


@pytest.fixture
def heard() -> list[frozenset[RunType]]:
    """What was told to be ready."""
    return []


@pytest.fixture
def signals(heard: list[frozenset[RunType]]) -> Signals:
    signals = Signals()
    signals.ready.subscribe(lambda news: heard.append(frozenset(news)))
    return signals


def test_a_job_is_ready_once_its_time_has_come_and_those_who_wait_are_told(
    stored_world: World, signals: Signals, heard: list[frozenset[RunType]]
) -> None:
    soon, later = (new_insert(stored_world.dataset(), kind, start_delay=HOUR) for kind in list(RunType)[:2])
    put(stored_world, [soon, later])
    promote = PromoteJobs(stored_world.database, signals)
    assert not promote.run_once()
    assert heard == []
    stored_world.sql.execute("UPDATE job_queue SET available_time = now() WHERE job_id = %s", (soon.job_id,))
    assert not promote.run_once()
    assert {job_id: row["ready"] for job_id, row in queue(stored_world).items()} == {
        soon.job_id: True,
        later.job_id: False,
    }
    assert heard == [{soon.job.run_type}]


def test_more_than_a_portion_is_promoted_portion_by_portion(
    stored_world: World, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote_jobs, "PORTION", 3)
    ids = flood(stored_world, stored_world.dataset(), 7, start_delay=HOUR)
    stored_world.sql.execute("UPDATE job_queue SET available_time = now()")
    promote = PromoteJobs(stored_world.database, signals)
    assert [promote.run_once() for _ in range(3)] == [True, True, False]
    assert [job_id for job_id, row in queue(stored_world).items() if row["ready"]] == ids


def test_a_job_that_somebody_holds_is_promoted_later(stored_world: World, signals: Signals) -> None:
    held, other = flood(stored_world, stored_world.dataset(), 2, start_delay=HOUR)
    stored_world.sql.execute("UPDATE job_queue SET available_time = now()")
    promote = PromoteJobs(stored_world.database, signals)
    with connect(stored_world.database_url) as holder, holder.transaction():
        holder.execute("SELECT 1 FROM job_queue WHERE job_id = %s FOR UPDATE", (held,))
        promote.run_once()
        assert {job_id for job_id, row in queue(stored_world).items() if row["ready"]} == {other}
    promote.run_once()
    assert all(row["ready"] for row in queue(stored_world).values())


def test_a_retry_that_waited_keeps_its_turn(stored_world: World, signals: Signals) -> None:
    worker, dataset = stored_world.service_user(), stored_world.dataset()
    [failed] = flood(stored_world, dataset, 1)
    flood(stored_world, stored_world.dataset(), 9)
    claimed_ids(stored_world, claim_request(worker, 5))
    stored_world.sql.execute("DELETE FROM job_leases WHERE job_id = %s", (failed,))
    stored_world.set_status(failed, JobStatus.PENDING)
    stored_world.sql.execute(
        "UPDATE jobs SET available_time = now() + interval '1 h' WHERE job_id = %s", (failed,)
    )
    with stored_world.database.transaction() as tx:
        assert tx.queue.enqueue([failed]).run_types == frozenset()
    stored_world.sql.execute("UPDATE job_queue SET available_time = now()")
    PromoteJobs(stored_world.database, signals).run_once()
    assert claimed_ids(stored_world, claim_request(worker)) == [[failed]]


def test_jobs_of_an_old_replica_get_turns_and_are_claimed(
    stored_world: World, signals: Signals, heard: list[frozenset[RunType]]
) -> None:
    one, two, worker = stored_world.dataset(), stored_world.dataset(), stored_world.service_user()
    first, second = old_jobs(stored_world, one, 3), old_jobs(stored_world, two, 2)
    [urgent] = old_jobs(stored_world, one, 1, priority=9)
    new = flood(stored_world, one, 1)
    AdoptJobs(stored_world.database, signals).run_once()
    assert heard == [{RunType.IMPORT}]
    turns = {job_id: row["turn"] for job_id, row in queue(stored_world).items()}
    assert [turns[job_id] for job_id in [*new, *first, *second]] == [1, 2, 3, 4, 1, 2]
    [ids] = claimed_ids(stored_world, claim_request(worker, 9))
    assert set(ids) == {urgent, *first, *second, *new}
    assert ids[0] == urgent


def test_what_an_old_replica_cancelled_is_not_adopted(stored_world: World, signals: Signals) -> None:
    jobs = old_jobs(stored_world, stored_world.dataset(), 2)
    stored_world.set_status(jobs[0], JobStatus.CANCELLED)
    AdoptJobs(stored_world.database, signals).run_once()
    assert list(queue(stored_world)) == jobs[1:]


def test_several_replicas_adopt_at_once_and_each_job_once(
    stored_world: World, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_jobs, "PORTION", 10)
    made = [job_id for _ in range(4) for job_id in old_jobs(stored_world, stored_world.dataset(), 50)]

    def adopt(_: int) -> None:
        duty = AdoptJobs(stored_world.database, signals)
        while duty.run_once():
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(adopt, range(4)))
    AdoptJobs(stored_world.database, signals).run_once()
    found = queue(stored_world)
    assert sorted(found) == sorted(made)
    rows = stored_world.sql.execute("SELECT job_id, turn FROM jobs").fetchall()
    assert dict(rows) == {job_id: row["turn"] for job_id, row in found.items()}


def test_adopted_jobs_of_a_limited_data_set_take_its_places(stored_world: World, signals: Signals) -> None:
    limited, worker = stored_world.dataset(), stored_world.service_user()
    limit(stored_world, limited, 2)
    jobs = old_jobs(stored_world, limited, 5)
    AdoptJobs(stored_world.database, signals).run_once()
    assert claimed_ids(stored_world, claim_request(worker, 9)) == [jobs[:2]]


def test_rows_of_jobs_that_are_not_pending_any_more_are_removed_and_their_places_filled(
    stored_world: World, signals: Signals
) -> None:
    limited, free = stored_world.dataset(), stored_world.dataset()
    limit(stored_world, limited, 1)
    placed, held = flood(stored_world, limited, 2)
    cancelled, gone, pending = flood(stored_world, free, 3)
    stored_world.set_status(placed, JobStatus.CANCELLED)
    stored_world.set_status(cancelled, JobStatus.CANCELLED)
    stored_world.sql.execute("DELETE FROM jobs WHERE job_id = %s", (gone,))
    AdoptJobs(stored_world.database, signals).run_once()
    assert {job_id: row["held"] for job_id, row in queue(stored_world).items()} == {
        held: False,
        pending: False,
    }


def test_a_row_is_left_alone_whose_job_somebody_is_about_to_change(
    stored_world: World, signals: Signals
) -> None:
    [job_id] = flood(stored_world, stored_world.dataset(), 1)
    stored_world.set_status(job_id, JobStatus.CANCELLED)
    with connect(stored_world.database_url) as retrying, retrying.transaction():
        retrying.execute(
            """UPDATE jobs SET status = 'PENDING', end_time = NULL, cancelled_by_soeid = NULL
                WHERE job_id = %s""",
            (job_id,),
        )
        AdoptJobs(stored_world.database, signals).run_once()
    assert list(queue(stored_world)) == [job_id]
