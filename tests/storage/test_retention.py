"""Old jobs and old history go, in portions, and nothing that anybody still needs."""

import logging
from uuid import uuid4

import pytest

from jobs_service.model.job import JobStatus
from jobs_service.storage.event_readers import ReaderAhead
from jobs_service.storage.retention import DEPENDANTS, EVENTS, JOBS
from tests.support.old_jobs import ENDS, YOUNG, Old
from tests.support.postgres import connect
from tests.support.world import World


@pytest.fixture
def old(stored_world: World) -> Old:
    return Old(stored_world)


def test_jobs_that_ended_long_ago_go_and_no_others(old: Old) -> None:
    for status in ENDS:
        old.ended(2, status)
    stay = {*old.ended(1, age=YOUNG), *old.jobs(2)}
    running, aged = old.jobs(2)
    old.sql.execute("UPDATE jobs SET status = 'RUNNING' WHERE job_id = %s", (running,))
    old.sql.execute(
        "UPDATE jobs SET create_time = now() - interval '1 y', update_time = now() - interval '1 y'"
        " WHERE job_id IN (%s, %s)",
        (running, aged),
    )
    old.count()
    old.pass_once()
    assert old.there() == stay | {running, aged}
    assert old.metrics.registry.get_sample_value("jobs_purged_jobs_total") == 6


def test_with_a_job_goes_what_belongs_to_it_and_its_history_stays(old: Old) -> None:
    gone, other = old.ended(), old.jobs(1)
    for job_id in (*gone, *other):
        old.depend(job_id, uuid4())
        old.sql.execute(
            """INSERT INTO job_attempts SELECT %s, n, n, gen_random_uuid(), 'w', now(), now(), 'FAILED', 'E',
                      NULL, true, true FROM generate_series(1, 3) n""",
            (job_id,),
        )
    # As release 0.1.0 leaves them when it cancels.
    old.sql.execute(
        "INSERT INTO job_queue VALUES (%s, 'IMPORT', 0, 1, 1, 2, now(), true, false, false)", (gone[0],)
    )
    old.sql.execute(
        """INSERT INTO job_leases VALUES (%s, 1, 1, gen_random_uuid(), 'w', 1, false, now(), now(), '60 s',
                  now())""",
        (gone[0],),
    )
    old.count()
    old.pass_once()
    left = {name: old.rows(name) for name in ("job_attempts", "job_dependencies", "job_queue", "job_leases")}
    assert left == {"job_attempts": 3, "job_dependencies": 1, "job_queue": 0, "job_leases": 0}
    assert len(old.events()) == 3


@pytest.mark.parametrize("status", ENDS)
def test_a_job_that_a_pending_one_waits_for_stays_until_that_has_ended(old: Old, status: JobStatus) -> None:
    [awaited], [dependant, claimed] = old.ended(status=status), old.jobs(2)
    old.depend(dependant, awaited)
    old.depend(claimed, awaited)
    old.sql.execute("UPDATE jobs SET status = 'RUNNING' WHERE job_id = %s", (claimed,))
    old.count()
    old.pass_once()
    assert awaited in old.there()
    old.end([dependant], JobStatus.CANCELLED, YOUNG)
    old.count()
    old.pass_once()
    assert old.there() == {dependant, claimed}


def test_a_job_whose_dependants_are_still_to_be_told_stays_until_they_are(old: Old) -> None:
    _, untold = old.ended(2)
    old.sql.execute("INSERT INTO ended_dependencies (job_id) VALUES (%s)", (untold,))
    old.count()
    old.pass_once()
    assert old.there() == {untold}
    old.sql.execute("DELETE FROM ended_dependencies")
    old.pass_once()
    assert old.there() == set()


@pytest.mark.parametrize(("status", "named"), [("COMPLETED", 0), ("FAILED", 1), ("CANCELLED", 1)])
def test_a_dependant_that_ended_too_still_knows_of_the_dependency_that_failed_it(
    old: Old, status: str, named: int
) -> None:
    [dependency], [dependant] = old.ended(status=JobStatus(status)), old.ended(1, JobStatus.CANCELLED, YOUNG)
    old.depend(dependant, dependency)
    old.count()
    old.pass_once()
    assert old.there() == {dependant}
    assert old.rows("job_dependencies") == named
    old.sql.execute("UPDATE jobs SET end_time = now() - interval '8 days'")
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == (set(), 0)


def test_a_job_with_very_many_dependants_takes_several_passes(old: Old) -> None:
    popular, _ = old.ended(2)
    old.sql.execute(
        "INSERT INTO job_dependencies SELECT gen_random_uuid(), %s FROM generate_series(1, %s)",
        (popular, DEPENDANTS * 2 + 1),
    )
    old.count()
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == ({popular}, DEPENDANTS + 1)
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == ({popular}, 1)
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == (set(), 0)


def test_a_job_whose_history_is_not_counted_yet_stays_until_it_is(old: Old) -> None:
    with connect(old.world.database_url) as late, late.transaction():
        # As release 0.1.0 writes it: its run type stands in the job alone.
        late.execute("SELECT pg_current_xact_id()")
        [job_id] = old.ended()
        old.sql.execute("UPDATE job_events SET run_type = NULL")
        old.count()
        old.pass_once()
        assert old.there() == {job_id}
    old.count()
    old.pass_once()
    assert old.there() == set()
    old.require_right_counts()


def test_a_pass_goes_on_behind_what_has_to_stay(old: Old) -> None:
    kept = old.ended(JOBS + 1, age="9 days")
    old.sql.execute("INSERT INTO ended_dependencies (job_id) SELECT unnest(%s)", (kept,))
    old.ended(JOBS + 1)
    old.count()
    assert old.pass_once() == 3
    assert old.there() == set(kept)
    old.sql.execute("DELETE FROM ended_dependencies")
    old.pass_once()
    assert old.there() == set()


def test_a_portion_says_what_it_deleted_and_nothing_says_nothing(
    old: Old, caplog: pytest.LogCaptureFixture
) -> None:
    old.ended(3)
    [kept] = old.ended()
    old.sql.execute("INSERT INTO ended_dependencies (job_id) VALUES (%s)", (kept,))
    old.count()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            old.pass_once()
            old.pass_once(old.purge_history)
    told = [(record.getMessage(), record.__dict__["fields"]) for record in caplog.records]
    assert [message for message, _ in told] == ["deleted old jobs", "deleted old history"]
    assert (told[0][1]["jobs"], told[0][1]["kept"], told[1][1]["events"]) == (3, 1, 4)


# --- History.


def test_old_history_goes_oldest_first_in_portions_whatever_became_of_its_jobs(old: Old) -> None:
    made = old.jobs(EVENTS + 10)
    old.sql.execute("UPDATE job_events SET time = now() - interval '8 days'")
    old.end(made[:3], JobStatus.COMPLETED, YOUNG)
    old.count()
    ids = old.events()
    assert old.purge_history.run_once()
    assert old.events() == ids[EVENTS:]
    assert not old.purge_history.run_once()
    assert old.events() == ids[-3:]
    assert len(old.there()) == EVENTS + 10
    assert old.metrics.registry.get_sample_value("jobs_purged_events_total") == EVENTS + 10


def test_what_a_reader_has_not_read_stays(old: Old) -> None:
    for _ in range(4):
        old.ended()
    old.count()
    ids = old.events()
    old.sql.execute("INSERT INTO event_readers (reader) VALUES ('relay')")
    old.pass_once(old.purge_history)
    assert old.events() == ids
    old.sql.execute(
        """UPDATE event_readers SET (transaction_id, event_id) =
                  (SELECT transaction_id, event_id FROM job_events WHERE event_id = %s)
            WHERE reader = 'relay'""",
        (ids[4],),
    )
    old.pass_once(old.purge_history)
    # The events of creation, too, are of today: of four jobs that ended, two are read.
    assert old.events() == [ids[0], ids[2], *ids[4:]]


def test_where_a_reader_is_ahead_of_the_cluster_no_history_is_deleted(old: Old) -> None:
    old.ended()
    old.sql.execute("UPDATE event_readers SET transaction_id = '4000000000'")
    for duty in (old.purge_history, old.purge):
        with pytest.raises(ReaderAhead, match="restored from a dump"):
            duty.run_once()
    assert (len(old.events()), len(old.there())) == (2, 1)


_OLD_EVENTS = """
INSERT INTO job_events (type, job_id, actor_id, actor_soeid, status_after, time)
     SELECT 'CREATED', gen_random_uuid(), 1, 'al00001', 'PENDING', now() - interval '8 days'
       FROM generate_series(1, %s)"""


def test_history_that_was_committed_late_goes_with_a_later_pass(old: Old) -> None:
    url = old.world.database_url
    with connect(url) as first, connect(url) as late, late.transaction():
        with first.transaction():
            first.execute("SELECT pg_current_xact_id()")
            late.execute(_OLD_EVENTS, (1,))
            first.execute(_OLD_EVENTS, (EVENTS,))
        old.count()
        assert old.purge_history.run_once()
        assert old.events() == []
    # It stands before all that was deleted.
    old.count()
    assert len(old.events()) == 1
    for _ in range(2):
        old.pass_once(old.purge_history)
    assert old.events() == []
