"""What the end of a claim makes of its job: every outcome, at every number of attempts and releases."""

import uuid
from datetime import timedelta

import pytest

from jobs_service.model.endings import HeldJob, Overdue, cut, ending, is_repeated, overdue
from jobs_service.model.job import AttemptOutcome, JobStatus, RunType
from jobs_service.model.retry import MAX_RELEASES, RetryPolicy
from jobs_service.model.states import EventType, may_become
from jobs_service.model.work import Completion, Failure, Outcome, Release

DONE = Completion(output_summary=None, summary_bytes=0, output_commit_id=None)
POLICY = RetryPolicy(initial=timedelta(seconds=10), longest=timedelta(seconds=60), multiplier=3)


def held(*, attempt: int = 1, of: int = 3, releases: int = 0) -> HeldJob:
    return HeldJob(
        job_id=uuid.uuid4(),
        run_type=RunType.IMPORT,
        dataset_id=1,
        lease_token=uuid.uuid4(),
        attempt=attempt,
        max_attempts=of,
        releases=releases,
        retry_policy=POLICY,
    )


def failure(*, hopeless: bool = False, delay: timedelta | None = None, message: str = "why") -> Failure:
    return Failure("ValueError", message, hopeless, delay)


OUTCOMES: list[Outcome] = [DONE, failure(), failure(hopeless=True), Release(), Release(unseen=True)]


@pytest.mark.parametrize("attempt", [1, 2, 3])
@pytest.mark.parametrize("releases", [0, MAX_RELEASES - 1, MAX_RELEASES])
def test_every_ending_is_a_legal_transition_and_leaves_attempts_for_another_claim(
    attempt: int, releases: int
) -> None:
    job = held(attempt=attempt, releases=releases)
    endings = [ending(job, outcome) for outcome in OUTCOMES]
    endings += [overdue(job, Overdue("w", timed_out, 60)) for timed_out in (True, False)]
    for one in endings:
        assert may_become(JobStatus.RUNNING, one.status)
        assert one.attempt <= job.max_attempts
        assert not one.will_retry or one.attempt < job.max_attempts
        assert (one.status is JobStatus.FAILED) <= (one.error is not None)


def test_a_failure_waits_as_its_policy_says_and_the_last_one_ends_the_job() -> None:
    first, second, last = (ending(held(attempt=attempt), failure()) for attempt in (1, 2, 3))
    assert 8 <= first.delay.total_seconds() <= 12
    assert 24 <= second.delay.total_seconds() <= 36
    assert (first.event, first.status) == (EventType.ATTEMPT_FAILED, JobStatus.PENDING)
    assert (last.event, last.status, last.delay) == (EventType.FAILED, JobStatus.FAILED, timedelta(0))


def test_a_failure_may_say_how_long_to_wait_and_that_none_could_help() -> None:
    assert ending(held(), failure(delay=timedelta(seconds=7))).delay == timedelta(seconds=7)
    hopeless = ending(held(), failure(hopeless=True, delay=timedelta(seconds=7)))
    assert hopeless.status is JobStatus.FAILED
    assert hopeless.error is not None
    assert not hopeless.error.retryable


def test_a_release_spends_nothing_but_the_101st_in_a_row_counts_as_a_failure() -> None:
    one = ending(held(attempt=2, releases=99), Release(timedelta(seconds=5)))
    assert (one.attempt, one.releases, one.delay) == (1, 100, timedelta(seconds=5))
    too_many = ending(held(attempt=2, releases=100), Release(timedelta(seconds=5)))
    assert (too_many.attempt, too_many.releases, too_many.outcome) == (2, 0, AttemptOutcome.FAILED)
    assert too_many.error is not None
    assert too_many.error.type == "ReleasedTooOften"
    assert ending(held(attempt=3, releases=100), Release()).status is JobStatus.FAILED


def test_a_release_by_the_service_itself_counts_for_nothing() -> None:
    unseen = ending(held(releases=100), Release(unseen=True))
    assert (unseen.status, unseen.attempt, unseen.releases) == (JobStatus.PENDING, 0, 100)


def test_the_error_tells_an_expired_lease_from_a_run_timeout() -> None:
    lease = overdue(held(attempt=3), Overdue("host-7", timed_out=False, seconds=60))
    run = overdue(held(attempt=3), Overdue("host-7", timed_out=True, seconds=90))
    assert lease.error
    assert run.error
    assert (lease.error.type, lease.error.message) == (
        "LeaseExpired",
        "worker host-7 was not heard of for 60 seconds",
    )
    assert (run.error.type, run.error.message) == (
        "RunTimeout",
        "worker host-7 did not end the attempt within 90 seconds",
    )
    assert (lease.event, run.event) == (EventType.LEASE_EXPIRED, EventType.RUN_TIMED_OUT)


@pytest.mark.parametrize("character", ["a", "é", "€", "🙂"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_error_is_cut_between_characters(character: str, before: int) -> None:
    message = "x" * before + character * 1_000
    one = ending(held(), failure(message=message))
    assert one.error is not None
    size = len(one.error.message.encode())
    assert 1_000 - len(character.encode()) < size <= 1_000
    assert message.startswith(one.error.message)
    assert cut("short", 5) == "short"


def test_each_kind_of_call_repeats_what_it_has_ended_and_nothing_else() -> None:
    kinds: dict[Outcome, AttemptOutcome] = {
        DONE: AttemptOutcome.COMPLETED,
        failure(): AttemptOutcome.FAILED,
        Release(): AttemptOutcome.RELEASED,
    }
    repeated = {
        outcome: {ended for ended in AttemptOutcome if is_repeated(outcome, ended, "ValueError")}
        for outcome in kinds
    }
    assert repeated == {outcome: {ended} for outcome, ended in kinds.items()}
    assert is_repeated(Release(), AttemptOutcome.FAILED, "ReleasedTooOften")
