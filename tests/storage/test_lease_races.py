"""What meets at the same moment: one of them wins, both are told the truth, and the books are right."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from jobs_service.model.errors import JobNotCancellable, JobNotRetryable, LeaseLost, RowLocked
from jobs_service.model.job import AttemptOutcome, Job, JobStatus
from jobs_service.model.requests import CancelRequest
from jobs_service.model.work import FinishRequest, FinishResult, LeaseState, Outcome
from tests.support.postgres import connect
from tests.support.service import wait_until
from tests.support.work import COMPLETED, FAILED, RELEASED, Claimed, Workshop
from tests.support.world import World

ROUNDS = 30
_WAITING = """
SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"""
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def at_once(pool: ThreadPoolExecutor, *works: Callable[[], Any]) -> list[Any]:
    """What each returns, all begun at the same moment."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        gate.wait(30)
        return work()

    return [one.result(60) for one in [pool.submit(run, work) for work in works]]


def outcomes(job: Job) -> list[AttemptOutcome | None]:
    return [one.outcome for one in job.attempts]


def cancel_meets_complete(shop: Workshop, pool: ThreadPoolExecutor) -> JobStatus:
    """Of both exactly one wins; returns what the job is then."""
    claim = shop.running()
    done, cancelled = at_once(
        pool, partial(shop.finish, claim, COMPLETED), partial(shop.cancel, claim.job_id)
    )
    job = shop.get(claim.job_id)
    if isinstance(done, FinishResult):
        assert job.status is done.job.status is JobStatus.COMPLETED
        assert isinstance(cancelled, JobNotCancellable)
        assert cancelled.metadata["status"] == "COMPLETED"
        assert isinstance(shop.finish(claim, COMPLETED), FinishResult)
    else:
        assert isinstance(done, LeaseLost)
        assert done.metadata["status"] == "CANCELLED"
        assert isinstance(cancelled, Job)
        assert job.status is JobStatus.CANCELLED
        assert job.output_summary is None
        assert shop.heartbeat(claim).state is LeaseState.CANCEL_REQUESTED
    assert shop.types(claim.job_id) == ["CREATED", "CLAIMED", job.status.value]
    assert len(job.attempts) == 1
    shop.check(claim.job_id)
    return job.status


def test_of_a_cancel_and_a_complete_one_wins(shop: Workshop, pool: ThreadPoolExecutor) -> None:
    for _ in range(ROUNDS):
        cancel_meets_complete(shop, pool)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_of_a_cancel_and_a_complete_one_wins_in_200_rounds(
    shop: Workshop, pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    won = Counter(cancel_meets_complete(shop, pool) for _ in range(200))
    with capsys.disabled():
        print(f"\ncancel against complete: {dict(won)}")


def test_of_two_kinds_of_calls_with_one_token_one_wins(shop: Workshop, pool: ThreadPoolExecutor) -> None:
    for other in (FAILED, RELEASED):
        for _ in range(ROUNDS):
            claim = shop.running()
            results = at_once(
                pool, partial(shop.finish, claim, COMPLETED), partial(shop.finish, claim, other)
            )
            assert sorted(type(one).__name__ for one in results) == ["FinishResult", "LeaseLost"]
            assert len(shop.get(claim.job_id).attempts) == 1
            shop.check(claim.job_id)


def test_the_same_call_at_the_same_moment_gets_the_same_answer(
    shop: Workshop, pool: ThreadPoolExecutor
) -> None:
    for outcome in (COMPLETED, FAILED, RELEASED):
        for _ in range(ROUNDS // 3):
            claim = shop.running()
            first, second = at_once(pool, *[partial(shop.finish, claim, outcome)] * 2)
            assert isinstance(first, FinishResult)
            assert first == second
            assert len(shop.types(claim.job_id)) == 3
            shop.check(claim.job_id)


def test_the_sweep_and_a_heartbeat_agree_who_was_first(shop: Workshop, pool: ThreadPoolExecutor) -> None:
    for _ in range(ROUNDS):
        claim = shop.running()
        shop.age(claim)
        beat, swept = at_once(pool, partial(shop.heartbeat, claim, {"percent": 1.0}), shop.sweep)
        job = shop.get(claim.job_id)
        if swept.taken_back:
            assert beat.state is LeaseState.LOST
            assert (job.status, outcomes(job)) == (JobStatus.PENDING, [AttemptOutcome.LEASE_EXPIRED])
        else:
            assert beat.state is LeaseState.RENEWED
            assert (job.status, job.lease_expire_time) == (JobStatus.RUNNING, beat.lease_expire_time)
        assert shop.sweep().taken_back == 0
        shop.check(claim.job_id, reported=int(job.progress is not None))


@pytest.mark.parametrize("outcome", [COMPLETED, FAILED, RELEASED], ids=["complete", "fail", "release"])
def test_the_sweep_and_the_end_of_a_claim_agree_who_was_first(
    shop: Workshop, pool: ThreadPoolExecutor, outcome: Outcome
) -> None:
    for _ in range(ROUNDS // 2):
        claim = shop.running()
        shop.age(claim)
        ended, swept = at_once(pool, partial(shop.finish, claim, outcome), shop.sweep)
        job = shop.get(claim.job_id)
        if swept.taken_back:
            assert isinstance(ended, LeaseLost)
            assert outcomes(job) == [AttemptOutcome.LEASE_EXPIRED]
        else:
            assert isinstance(ended, FinishResult)
            assert job == ended.job
        assert len(shop.types(claim.job_id)) == 3
        shop.check(claim.job_id)


def test_a_cancel_holds_whatever_the_sweep_does(shop: Workshop, pool: ThreadPoolExecutor) -> None:
    for _ in range(ROUNDS):
        claim = shop.running()
        shop.age(claim)
        cancelled, swept = at_once(pool, partial(shop.cancel, claim.job_id), shop.sweep)
        assert isinstance(cancelled, Job)
        job = shop.get(claim.job_id)
        assert job.status is JobStatus.CANCELLED
        first = AttemptOutcome.LEASE_EXPIRED if swept.taken_back else AttemptOutcome.CANCELLED
        assert outcomes(job) == [first]
        shop.check(claim.job_id)


def test_a_retry_that_meets_the_sweep_comes_before_it_or_after(
    shop: Workshop, pool: ThreadPoolExecutor
) -> None:
    for _ in range(ROUNDS):
        claim = shop.running(attempts=1)
        shop.age(claim)
        retried, swept = at_once(pool, partial(shop.retry, claim.job_id), shop.sweep)
        # A retry that saw the job RUNNING has locked it for a moment; then the sweep passed it by.
        assert isinstance(retried, Job | JobNotRetryable)
        assert swept.taken_back + shop.sweep().taken_back == 1
        job = shop.get(claim.job_id)
        assert job.status is (JobStatus.PENDING if isinstance(retried, Job) else JobStatus.FAILED)
        assert job.max_attempts == (2 if isinstance(retried, Job) else 1)
        shop.check(claim.job_id)


def test_a_cancel_and_a_retry_leave_the_job_as_the_later_one_says(
    shop: Workshop, pool: ThreadPoolExecutor
) -> None:
    for _ in range(ROUNDS):
        claim = shop.running()
        cancelled, retried = at_once(
            pool, partial(shop.cancel, claim.job_id), partial(shop.retry, claim.job_id)
        )
        assert isinstance(cancelled, Job)
        assert isinstance(retried, Job | JobNotRetryable)
        expected = JobStatus.PENDING if isinstance(retried, Job) else JobStatus.CANCELLED
        assert shop.get(claim.job_id).status is expected
        shop.check(claim.job_id)


def test_many_sweeps_at_once_take_each_job_back_once(shop: Workshop, pool: ThreadPoolExecutor) -> None:
    claims = [shop.running() for _ in range(60)]
    for claim in claims:
        shop.age(claim)

    def sweeps() -> int:
        return sum(shop.sweep(limit=7).taken_back for _ in range(12))

    taken = at_once(pool, *[sweeps] * 4)
    assert sum(taken) + sweeps() == 60
    for claim in claims:
        assert shop.types(claim.job_id) == ["CREATED", "CLAIMED", "LEASE_EXPIRED"]
        shop.check(claim.job_id)


def test_batches_that_end_the_same_jobs_in_any_order_never_stand_in_each_others_way(
    shop: Workshop, pool: ThreadPoolExecutor
) -> None:
    def finish(order: list[Claimed]) -> list[Any]:
        return [shop.finish(one, COMPLETED) for one in order[::3]]

    def beat(order: list[Claimed]) -> list[Any]:
        return [shop.heartbeat(one, {"percent": 1.0}) for one in order]

    def cancel(order: list[Claimed]) -> list[Any]:
        return [shop.cancel(one.job_id) for one in order[1::3]]

    for _ in range(5):
        claims = [shop.running() for _ in range(12)]
        for claim in claims:
            shop.age(claim)
        back = claims[::-1]
        works = [partial(finish, claims), partial(beat, back), partial(cancel, back)]
        results = at_once(pool, *works, lambda: [shop.sweep() for _ in range(5)])
        assert not [one for some in results for one in some if isinstance(one, RowLocked)]
        for claim in claims:
            job = shop.get(claim.job_id)
            assert job.attempt <= job.max_attempts
            assert len(job.attempts) == 1


def finish_all(shop: Workshop, claims: list[Claimed]) -> list[Any]:
    asked = [FinishRequest(shop.worker.caller, one.job_id, one.token, COMPLETED) for one in claims]
    return shop.workers.finish_jobs(asked)


def cancel_all(shop: Workshop, claims: list[Claimed]) -> list[Any]:
    return shop.jobs.cancel_jobs([CancelRequest(shop.owner.caller, one.job_id, None) for one in claims])


@pytest.mark.parametrize("end", [finish_all, cancel_all])
def test_a_batch_takes_leases_in_the_order_in_which_heartbeats_lock_them(
    shop: Workshop, pool: ThreadPoolExecutor, end: Callable[[Workshop, list[Claimed]], list[Any]]
) -> None:
    first, last = sorted([shop.job(), shop.job()])
    # Not the order in which they lie in the table, nor that of the call.
    claims = [shop.claim(last), shop.claim(first)]
    lock = "SELECT FROM job_leases WHERE job_id = %s FOR UPDATE NOWAIT"
    with connect(shop.world.database_url) as heartbeat:
        with heartbeat.transaction():
            heartbeat.execute(lock, (first,))
            ending = pool.submit(end, shop, claims)
            wait_until(lambda: shop.sql.execute(_WAITING).rowcount, 10, "the end that waits")
            heartbeat.execute(lock, (last,))
        results = ending.result(10)
    assert not [one for one in results if isinstance(one, Exception)]
