"""The token fences every write of a worker; time only permits rescue."""

import uuid
from datetime import timedelta
from uuid import UUID

import pytest

from jobs_service.core.expire_leases import Swept
from jobs_service.model.caller import Caller, Role
from jobs_service.model.errors import (
    CallerUnknown,
    JobNotFound,
    JobsError,
    LeaseLost,
    RoleRequired,
    RowLocked,
)
from jobs_service.model.job import AttemptOutcome, JobStatus, JobView, RunType
from jobs_service.model.work import (
    Failure,
    FinishRequest,
    FinishResult,
    Heartbeat,
    HeartbeatRequest,
    LeaseState,
    Outcome,
)
from tests.support.postgres import connect
from tests.support.work import COMPLETED, FAILED, LONG_AGO, RELEASED, Claimed, Workshop
from tests.support.world import World


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


def ended(result: FinishResult | JobsError) -> FinishResult:
    assert isinstance(result, FinishResult), result
    return result


def lost(result: FinishResult | JobsError) -> dict[str, str]:
    assert isinstance(result, LeaseLost), result
    return result.metadata


OUTCOMES: dict[str, Outcome] = {"complete": COMPLETED, "fail": FAILED, "release": RELEASED}
AFTER = {"complete": JobStatus.COMPLETED, "fail": JobStatus.PENDING, "release": JobStatus.PENDING}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_who_lost_the_lease_writes_nothing_and_who_has_it_counts(shop: Workshop, kind: str) -> None:
    a = shop.claim(shop.job(), "a")
    shop.expired(a)
    b = shop.claim(a.job_id, "b")
    before = shop.get(a.job_id)
    for _ in range(2):
        for outcome in OUTCOMES.values():
            assert lost(shop.finish(a, outcome)) == {
                "job_id": str(a.job_id),
                "status": "RUNNING",
                "attempt": "2",
            }
        assert shop.heartbeat(a).state is LeaseState.LOST
    assert shop.get(a.job_id) == before
    first = ended(shop.finish(b, OUTCOMES[kind]))
    again = ended(shop.finish(b, OUTCOMES[kind]))
    assert first == again
    assert first.job.status is AFTER[kind]
    for outcome in OUTCOMES.values():
        assert lost(shop.finish(a, outcome))["status"] == AFTER[kind]
    assert [one.worker_id for one in first.job.attempts] == ["a", "b"]
    shop.check(a.job_id)


@pytest.mark.parametrize("kind", OUTCOMES)
def test_another_kind_of_call_with_the_token_that_ended_the_claim_is_refused(
    shop: Workshop, kind: str
) -> None:
    claim = shop.running()
    first = ended(shop.finish(claim, OUTCOMES[kind]))
    for name, outcome in OUTCOMES.items():
        if name != kind:
            assert lost(shop.finish(claim, outcome))["status"] == first.job.status
    assert shop.heartbeat(claim).state is LeaseState.LOST
    assert shop.get(claim.job_id) == first.job


def test_the_first_of_two_different_completes_stands(shop: Workshop) -> None:
    claim = shop.running()
    first = ended(shop.finish(claim, COMPLETED))
    second = ended(shop.finish(claim, type(COMPLETED)({"rows": 2}, 10, None)))
    assert second == first
    assert second.job.output_summary == {"rows": 1}
    assert second.job.payload_bytes == 31


@pytest.mark.parametrize("first", OUTCOMES)
@pytest.mark.parametrize("second", OUTCOMES)
def test_of_two_outcomes_in_one_batch_the_first_wins(shop: Workshop, first: str, second: str) -> None:
    claim, other = shop.running(), shop.running()
    requests = [
        FinishRequest(shop.worker.caller, one.job_id, one.token, OUTCOMES[kind])
        for kind in (first, second)
        for one in (claim, other)
    ]
    results = shop.workers.finish_jobs(requests)
    assert [ended(result).job.status for result in results[:2]] == [AFTER[first]] * 2
    if first == second:
        assert results[2:] == results[:2]
    else:
        assert [lost(result)["status"] for result in results[2:]] == [AFTER[first]] * 2
    shop.check(claim.job_id)


def test_an_expired_lease_lives_until_the_sweep_comes(shop: Workshop) -> None:
    renewed, completed = shop.running(), shop.running()
    shop.age(renewed)
    shop.age(completed)
    assert shop.heartbeat(renewed).state is LeaseState.RENEWED
    assert ended(shop.finish(completed, COMPLETED)).job.status is JobStatus.COMPLETED
    assert shop.sweep() == Swept((), more=False)
    assert shop.get(renewed.job_id).status is JobStatus.RUNNING


def test_a_lease_that_was_renewed_after_the_sweep_had_looked_is_left_alone(shop: Workshop) -> None:
    claim = shop.running()
    shop.age(claim)
    with shop.world.database.transaction() as tx:
        assert tx.leases.candidates(since=LONG_AGO, limit=10) == [claim.job_id]
        shop.heartbeat(claim)
        assert tx.endings.take([claim.job_id]).held.keys() == {claim.job_id}
        assert tx.leases.lock_overdue([claim.job_id], since=LONG_AGO) == {}


def test_what_somebody_holds_is_left_for_the_next_sweep(shop: Workshop) -> None:
    held, free, renewing = shop.running(), shop.running(), shop.running()
    for claim in (held, free, renewing):
        shop.age(claim)
    with shop.world.database.transaction() as tx, connect(shop.world.database_url) as other:
        tx.jobs.lock([held.job_id], wait=True)
        with other.transaction():
            other.execute("SELECT FROM job_leases WHERE job_id = %s FOR UPDATE", (renewing.job_id,))
            assert shop.sweep().taken_back == 1
    assert shop.get(free.job_id).status is JobStatus.PENDING
    assert shop.sweep().taken_back == 2


@pytest.mark.parametrize("timed_out", [False, True], ids=["lease", "run"])
def test_an_expiry_costs_an_attempt_and_the_last_one_the_job(shop: Workshop, timed_out: bool) -> None:
    job_id = shop.job(attempts=2)
    outcome = AttemptOutcome.RUN_TIMED_OUT if timed_out else AttemptOutcome.LEASE_EXPIRED
    for _ in range(2):
        shop.age(shop.claim(job_id, "host-7"), timed_out=timed_out)
        assert shop.sweep().taken_back == 1
    job = shop.get(job_id)
    assert (job.status, job.attempt, job.max_attempts) == (JobStatus.FAILED, 2, 2)
    assert [(one.number, one.outcome) for one in job.attempts] == [(1, outcome), (2, outcome)]
    assert job.error is not None
    assert job.error == job.attempts[1].error
    assert job.error.type == ("RunTimeout" if timed_out else "LeaseExpired")
    event = shop.world.events(job_id)[-1]
    assert (event["type"], event["actor_soeid"], event["status_after"]) == (outcome.value, "", "FAILED")
    assert shop.types(job_id) == ["CREATED", "CLAIMED", outcome.value, "CLAIMED", outcome.value]
    shop.check(job_id)


def test_a_lease_ends_with_the_attempt_however_long_it_is_renewed_for(shop: Workshop) -> None:
    claim = shop.claim(shop.job(run_timeout=timedelta(seconds=30)))
    deadline = shop.get(claim.job_id).attempts[0].start_time + timedelta(seconds=30)
    result = shop.heartbeat(claim)
    assert (result.state, result.lease_expire_time) == (LeaseState.RENEWED, deadline)


def test_the_sweep_goes_in_portions_the_oldest_first(shop: Workshop) -> None:
    claims = [shop.running() for _ in range(5)]
    for claim in claims:
        shop.age(claim)
    swept = [shop.sweep(limit=2) for _ in range(3)]
    assert [(one.taken_back, one.more) for one in swept] == [(2, True), (2, True), (1, False)]
    for claim in claims:
        assert shop.get(claim.job_id).status is JobStatus.PENDING


def test_a_cancelled_job_is_never_taken_back(shop: Workshop) -> None:
    claim = shop.running()
    shop.age(claim)
    cancelled = shop.cancel(claim.job_id)
    assert shop.sweep() == Swept((), more=False)
    assert shop.get(claim.job_id).version == getattr(cancelled, "version", None)


def test_a_cancel_ends_the_lease_and_the_worker_is_told_until_a_retry(shop: Workshop) -> None:
    told: list[UUID] = []
    shop.signals.revoked.subscribe(told.extend)
    claim = shop.running()
    shop.cancel(claim.job_id)
    assert told == [claim.job_id]
    for outcome in OUTCOMES.values():
        assert lost(shop.finish(claim, outcome))["status"] == "CANCELLED"
    assert [shop.heartbeat(claim).state for _ in range(2)] == [LeaseState.CANCEL_REQUESTED] * 2
    job = shop.get(claim.job_id)
    assert (job.worker_id, job.lease_expire_time) == (None, None)
    assert [(one.outcome, one.end_time) for one in job.attempts] == [(AttemptOutcome.CANCELLED, job.end_time)]
    shop.check(claim.job_id)
    shop.retry(claim.job_id)
    assert shop.heartbeat(claim).state is LeaseState.LOST
    later = shop.claim(claim.job_id)
    shop.cancel(claim.job_id)
    assert shop.heartbeat(claim).state is LeaseState.LOST
    assert shop.heartbeat(later).state is LeaseState.CANCEL_REQUESTED


def test_what_release_0_1_0_cancels_is_cancelled_for_its_worker_and_swept(shop: Workshop) -> None:
    claim = shop.running()
    shop.cancel_as_0_1_0(claim.job_id)
    version = shop.get(claim.job_id).version
    assert shop.heartbeat(claim, {"percent": 1.0}).state is LeaseState.CANCEL_REQUESTED
    for outcome in OUTCOMES.values():
        assert lost(shop.finish(claim, outcome))["status"] == "CANCELLED"
    shop.age(claim)
    assert shop.sweep() == Swept((), more=False)
    job = shop.get(claim.job_id)
    assert (job.status, job.version) == (JobStatus.CANCELLED, version)
    assert [(one.outcome, one.end_time) for one in job.attempts] == [(AttemptOutcome.CANCELLED, job.end_time)]
    assert shop.heartbeat(claim).state is LeaseState.CANCEL_REQUESTED
    assert shop.sql.execute("SELECT count(*) FROM job_leases").fetchone() == (0,)


@pytest.mark.parametrize("was_running", [False, True])
def test_what_release_0_1_0_cancelled_can_be_retried_and_claimed(shop: Workshop, was_running: bool) -> None:
    job_id = shop.job()
    claim = shop.claim(job_id) if was_running else None
    shop.cancel_as_0_1_0(job_id)
    shop.retry(job_id)
    assert shop.get(job_id).status is JobStatus.PENDING
    if claim:
        assert shop.heartbeat(claim).state is LeaseState.LOST
        assert lost(shop.finish(claim, COMPLETED))["status"] == "PENDING"
    assert ended(shop.finish(shop.claim(job_id), COMPLETED)).job.status is JobStatus.COMPLETED


def test_progress_counts_as_a_change_only_where_it_is_new(shop: Workshop) -> None:
    claim = shop.running()
    version = shop.get(claim.job_id).version
    for percent in (10.0, 10.0, 20.0):
        shop.heartbeat(claim, {"percent": percent})
    job = shop.get(claim.job_id)
    assert (job.version, job.progress) == (version + 2, {"percent": 20.0})


def test_progress_of_a_job_that_somebody_holds_is_left_out_and_its_lease_renewed(shop: Workshop) -> None:
    claim = shop.running()
    before = shop.get(claim.job_id)
    with shop.world.database.transaction() as tx:
        tx.jobs.lock([claim.job_id], wait=True)
        assert shop.heartbeat(claim, {"percent": 1.0}).state is LeaseState.RENEWED
    after = shop.get(claim.job_id)
    assert after.progress is None
    assert before.lease_expire_time
    assert after.lease_expire_time
    assert after.lease_expire_time > before.lease_expire_time


def test_a_lease_that_somebody_holds_for_long_is_answered_as_it_is(shop: Workshop) -> None:
    held, free = shop.running(), shop.running()
    before = shop.get(held.job_id).lease_expire_time
    beats = tuple(Heartbeat(one.job_id, one.token) for one in (held, free))
    with connect(shop.world.database_url) as other, other.transaction():
        other.execute("SELECT FROM job_leases WHERE job_id = %s FOR UPDATE", (held.job_id,))
        [results] = shop.workers.heartbeat_jobs(
            [HeartbeatRequest(shop.worker.caller, beats, timedelta(minutes=5))]
        )
    assert isinstance(results, list)
    assert [one.state for one in results] == [LeaseState.RENEWED] * 2
    assert results[0].lease_expire_time == before
    assert results[1].lease_expire_time == shop.get(free.job_id).lease_expire_time


def test_a_thousand_leases_are_answered_each_in_its_place(shop: Workshop) -> None:
    alive, gone, cancelled = shop.running(), shop.running(), shop.running()
    shop.finish(gone, COMPLETED)
    shop.cancel(cancelled.job_id)
    unknown = Claimed(uuid.uuid4(), uuid.uuid4(), 1)
    guessed = Claimed(alive.job_id, uuid.uuid4(), 1)
    asked = [alive, gone, cancelled, unknown, guessed] * 200
    beats = tuple(Heartbeat(one.job_id, one.token) for one in asked)
    [results, other] = shop.workers.heartbeat_jobs(
        [
            HeartbeatRequest(shop.worker.caller, beats, timedelta(minutes=1)),
            HeartbeatRequest(shop.owner.caller, beats, timedelta(minutes=1)),
        ]
    )
    assert isinstance(results, list)
    lost_, cancel = LeaseState.LOST, LeaseState.CANCEL_REQUESTED
    assert [one.state for one in results] == [LeaseState.RENEWED, lost_, cancel, lost_, lost_] * 200
    assert isinstance(other, RoleRequired)


def test_a_token_that_was_never_the_jobs_tells_nothing_to_who_may_not_work_on_it(shop: Workshop) -> None:
    claim = shop.running()
    guess = Claimed(claim.job_id, uuid.uuid4(), 1)
    stranger = shop.world.service_user([RunType.SAMPLING])
    admin = shop.world.user(Role.ADMIN)
    for outcome in OUTCOMES.values():
        assert isinstance(shop.finish(guess, outcome, stranger.caller), JobNotFound)
        assert isinstance(shop.finish(guess, outcome, shop.owner.caller), RoleRequired)
        assert isinstance(shop.finish(guess, outcome, admin.for_user(shop.owner)), RoleRequired)
        assert isinstance(shop.finish(guess, outcome, Caller("zz99999", 2**40)), CallerUnknown)
        assert lost(shop.finish(guess, outcome, admin.caller))["status"] == "RUNNING"
        assert lost(shop.finish(guess, outcome))["status"] == "RUNNING"
        nowhere = Claimed(uuid.uuid4(), claim.token, 1)
        assert isinstance(shop.finish(nowhere, outcome, admin.caller), JobNotFound)
    # The token alone proves, whoever brings it.
    assert ended(shop.finish(claim, COMPLETED, stranger.caller)).job.status is JobStatus.COMPLETED
    assert isinstance(shop.finish(guess, COMPLETED, stranger.caller), JobNotFound)
    assert lost(shop.finish(claim, FAILED, stranger.caller))["status"] == "COMPLETED"


def test_one_job_that_is_held_keeps_no_other_from_ending(shop: Workshop) -> None:
    held, free = shop.running(), shop.running()
    requests = [FinishRequest(shop.worker.caller, one.job_id, one.token, COMPLETED) for one in (held, free)]
    with shop.world.database.transaction() as tx:
        tx.jobs.lock([held.job_id], wait=True)
        results = shop.workers.finish_jobs(requests)
    assert isinstance(results[0], RowLocked)
    assert ended(results[1]).job.status is JobStatus.COMPLETED
    assert ended(shop.finish(held, COMPLETED)).job.status is JobStatus.COMPLETED


def test_releases_count_in_a_row_and_a_spent_attempt_begins_anew(shop: Workshop) -> None:
    job_id = shop.job(releases=100)
    claim = shop.claim(job_id)
    first = ended(shop.finish(claim, RELEASED))
    assert ended(shop.finish(claim, RELEASED)) == first
    assert (first.job.attempt, first.will_retry) == (1, True)
    assert first.job.attempts[0].error is not None
    assert first.job.attempts[0].error.type == "ReleasedTooOften"
    assert ended(shop.finish(shop.claim(job_id), RELEASED)).job.attempt == 1
    assert shop.sql.execute("SELECT releases FROM jobs WHERE job_id = %s", (job_id,)).fetchone() == (1,)
    assert shop.types(job_id) == ["CREATED", "CLAIMED", "ATTEMPT_FAILED", "CLAIMED", "RELEASED"]


def test_full_shows_the_newest_attempts_the_running_one_last(shop: Workshop) -> None:
    job_id = shop.job()
    for number in range(60):
        shop.finish(shop.claim(job_id, f"worker-{number}"), RELEASED)
    claim = shop.claim(job_id, "worker-60")
    job = shop.get(job_id)
    assert [one.worker_id for one in job.attempts] == [f"worker-{number}" for number in range(11, 61)]
    assert (job.attempts[-1].end_time, job.attempts[-1].outcome) == (None, None)
    assert all(one.end_time and one.outcome is AttemptOutcome.RELEASED for one in job.attempts[:-1])
    expiry = shop.sql.execute("SELECT lease_expire_time FROM job_leases").fetchone()
    assert (job.worker_id, job.lease_expire_time) == ("worker-60", expiry[0] if expiry else None)
    for view in (JobView.BASIC, JobView.STATUS):
        shown = shop.get(job_id, view)
        assert (shown.attempts, shown.worker_id, shown.lease_expire_time) == ((), None, None)
    assert len(ended(shop.finish(claim, COMPLETED)).job.attempts) == 50


def test_every_time_follows_the_one_before_though_the_clock_went_back(shop: Workshop) -> None:
    claim = shop.running()
    shop.sql.execute("UPDATE jobs SET update_time = now() + interval '1 h'")
    job = ended(shop.finish(claim, FAILED)).job
    now = shop.sql.execute("SELECT now()").fetchone()
    assert now is not None
    assert job.update_time == job.attempts[0].end_time == job.available_time
    assert job.update_time > now[0] + timedelta(minutes=59)


def test_what_can_be_claimed_again_is_told_after_the_commit(shop: Workshop) -> None:
    told: list[RunType] = []
    done, later, *others = (shop.running() for _ in range(4))
    shop.signals.ready.subscribe(told.extend)
    shop.finish(done, COMPLETED)
    shop.finish(later, Failure("E", "m", non_retryable=False, retry_delay=timedelta(hours=1)))
    assert told == []
    outcomes: list[Outcome] = [FAILED, RELEASED]
    for claim, outcome in zip(others, outcomes, strict=True):
        shop.finish(claim, outcome)
    assert told == [RunType.IMPORT] * 2
