"""What operators see of the queue: true up to a cap, and read by indexes however much there is."""

from uuid import uuid4

import psycopg
import pytest

from jobs_service.model.job import RunType
from jobs_service.storage.queue_figures import CAP, UNTOLD_CAP, Oldest, Untold
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.upkeep.count_jobs import CountJobs
from tests.support.plans import explained, sent
from tests.support.world import World

_QUEUE = """
INSERT INTO job_queue (job_id, run_type, neg_priority, turn, dataset_id, payload_bytes, available_time, ready,
                       limited, held)
     SELECT (lpad(to_hex(%(made)s + n), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
             || substr(md5(n::text), 4, 15))::uuid,
            %(run_type)s, 0, n, %(made)s, 2, now() - %(age)s::interval, %(ready)s, %(held)s, %(held)s
       FROM generate_series(1, %(number)s) n"""
NOTHING = {run_type.value: 0.0 for run_type in RunType}


def queue(
    sql: psycopg.Connection,
    run_type: str,
    age: str,
    number: int = 1,
    *,
    ready: bool = True,
    held: bool = False,
    made: int = 1_000_000,
) -> None:
    """Jobs that wait, available for so long; made: when they were, for ids in the order of time."""
    parameters = {
        "run_type": run_type,
        "age": age,
        "number": number,
        "ready": ready,
        "held": held,
        "made": made,
    }
    sql.execute(_QUEUE, parameters)


def oldest(world: World) -> Oldest:
    with world.database.snapshot(seconds=10) as tx:
        return tx.queue_figures.oldest()


def depths(world: World) -> dict[tuple[str, str], int]:
    with world.database.snapshot(seconds=10) as tx:
        return {key: jobs for key, jobs in tx.queue_figures.depths().items() if jobs}


def test_jobs_are_counted_by_what_they_wait_for(stored_world: World) -> None:
    queue(stored_world.sql, "IMPORT", "1 h", 3, made=1_000)
    queue(stored_world.sql, "IMPORT", "1 h", 2, held=True, made=2_000)
    queue(stored_world.sql, "SAMPLING", "-1 h", 4, ready=False, made=3_000)
    # It has a limit, and not come so far yet.
    queue(stored_world.sql, "SAMPLING", "-1 h", 1, ready=False, held=True, made=4_000)
    assert depths(stored_world) == {("IMPORT", "ready"): 3, ("IMPORT", "held"): 2, ("SAMPLING", "delayed"): 5}


def test_counting_stops_at_its_cap_and_hides_no_run_type(stored_world: World) -> None:
    queue(stored_world.sql, "IMPORT", "1 h", CAP + 1, made=1_000)
    queue(stored_world.sql, "SAMPLING", "1 h", 7, made=9_000_000)
    assert depths(stored_world) == {("IMPORT", "ready"): CAP, ("SAMPLING", "ready"): 7}


def test_the_oldest_job_is_one_that_a_worker_could_have(stored_world: World) -> None:
    assert oldest(stored_world) == Oldest(NOTHING, 0.0)
    queue(stored_world.sql, "IMPORT", "1 h", made=3_000)
    queue(stored_world.sql, "IMPORT", "2 h", made=4_000)
    queue(stored_world.sql, "IMPORT", "9 h", held=True, made=2_000)
    queue(stored_world.sql, "SAMPLING", "-9 h", ready=False, made=1_000)
    found = oldest(stored_world)
    assert found.ready == NOTHING | {"IMPORT": pytest.approx(7200, abs=600)}
    assert found.waiting == pytest.approx(9 * 3600, abs=600)


def test_what_may_be_hidden_behind_others_is_not_said_to_be_nothing(stored_world: World) -> None:
    queue(stored_world.sql, "IMPORT", "1 h", CAP, held=True, made=1_000)
    queue(stored_world.sql, "SAMPLING", "1 h", made=9_000_000)
    hidden = oldest(stored_world)
    assert hidden.ready == {}
    assert hidden.waiting == pytest.approx(3600, abs=600)
    stored_world.sql.execute("UPDATE job_queue SET ready = false")
    assert oldest(stored_world) == Oldest({}, None)


def test_ends_that_dependants_do_not_know_of_are_counted_and_aged(stored_world: World) -> None:
    def untold() -> Untold:
        with stored_world.database.snapshot(seconds=10) as tx:
            return tx.queue_figures.untold()

    assert untold() == Untold(0, 0.0)
    stored_world.sql.execute(
        """WITH ended AS (
               INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority,
                                 payload_bytes, run_parameters, end_time)
               SELECT gen_random_uuid(), 'IMPORT', 'COMPLETED', 1, 1, 1, 0, 2, '{}',
                      now() - n * interval '1 h' FROM generate_series(1, 3) n RETURNING job_id)
           INSERT INTO ended_dependencies (job_id) SELECT job_id FROM ended"""
    )
    found = untold()
    assert found.jobs == 3
    assert found.oldest_seconds == pytest.approx(3 * 3600, abs=600)
    stored_world.sql.execute(
        "INSERT INTO ended_dependencies (job_id) SELECT gen_random_uuid() FROM generate_series(1, %s)",
        (UNTOLD_CAP,),
    )
    assert untold().jobs == UNTOLD_CAP


def test_the_lease_that_is_overdue_longest_is_told(stored_world: World) -> None:
    def overdue() -> float:
        with stored_world.database.snapshot(seconds=10) as tx:
            return tx.queue_figures.overdue_seconds()

    assert overdue() == 0
    for expiry, seconds in (("-1 h", 0), ("1 h", 3600), ("2 h", 7200)):
        stored_world.sql.execute(
            """INSERT INTO job_leases VALUES (%s, 1, 1, gen_random_uuid(), 'w', 1, false, now(),
                      now() - %s::interval, '60 s', now())""",
            (uuid4(), expiry),
        )
        assert overdue() == pytest.approx(seconds, abs=600)


QUEUED = 60_000


def test_no_figure_reads_more_than_its_cap(stored_world: World) -> None:
    sql = stored_world.sql
    for n, run_type in enumerate(RunType):
        queue(sql, run_type, "1 h", QUEUED // 4, made=n * 1_000_000)
    queue(sql, "IMPORT", "1 h", QUEUED, held=True, made=10_000_000)
    queue(sql, "IMPORT", "-1 h", QUEUED, ready=False, made=20_000_000)
    sql.execute("VACUUM ANALYZE job_queue")
    duty = CountJobs(stored_world.database, JobGauges())
    of_the_queue = [one for one in sent(stored_world.database, duty.run_once) if "FROM job_queue" in one.sql]
    assert len(of_the_queue) == 2
    for statement in of_the_queue:
        plan = explained(sql, statement)
        assert {scan.kind for scan in plan.scans if scan.table == "job_queue"} <= {
            "Index Scan",
            "Index Only Scan",
        }
        assert sum(scan.rows for scan in plan.scans) <= 6 * CAP, plan
