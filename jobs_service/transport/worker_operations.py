"""The core's work for workers as the loop sees it: a batcher for each operation, and calls that wait."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.errors import JobsError, ShuttingDown
from jobs_service.model.job import JobView
from jobs_service.model.work import (
    Claim,
    ClaimRequest,
    ClaimResult,
    Completion,
    FinishRequest,
    FinishResult,
    Heartbeat,
    HeartbeatRequest,
    HeartbeatResult,
    LeaseState,
    Release,
)
from jobs_service.storage.announcer import Heard
from jobs_service.telemetry.metrics import Metrics
from jobs_service.transport.batcher import Batcher, Limits
from jobs_service.transport.call import Call
from jobs_service.transport.waiters import (
    CHECK_SECONDS,
    ClaimWaiters,
    RevocationWaiters,
    WaitingRoom,
    jittered,
    on_loop,
)

WORK_BATCHERS = 4
"""One each: claiming, heartbeats, ends of claims, many ends in one call."""
_BEFORE_DEADLINE = 1.0
"""Seconds before its caller's deadline at which a call stops waiting."""
_MOST_CLAIMED = 400
"""Jobs that the claims of one batch may ask for together, or the first of them alone."""
_MOST_RENEWED = 1_000
_CLOSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class WorkerOperations:
    """Runs the core's operations for workers' calls.

    max_waiters: calls that may wait at a time. abort: cuts the database connections in use.
    """

    def __init__(
        self,
        service: WorkerService,
        signals: Signals,
        *,
        limits: Limits,
        max_waiters: int,
        abort: Callable[[], None],
        metrics: Metrics | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        self._limits = limits
        self._abort = abort
        self._signals = signals
        self._claims = ClaimWaiters()
        self._revocations = RevocationWaiters()
        self.room = WaitingRoom(max_waiters)
        self._probing: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(WORK_BATCHERS, thread_name_prefix="work")
        metrics.work.waiting_claims.set_function(lambda: self.room.count)
        self._given = metrics.work.claims
        self._claim = Batcher[ClaimRequest, ClaimResult](
            service.claim_jobs, self._threads, limits, metrics.batches("claim"), self._give_back_all
        )
        self._heartbeat = Batcher[HeartbeatRequest, list[HeartbeatResult]](
            service.heartbeat_jobs, self._threads, limits, metrics.batches("heartbeat")
        )
        self._finish = Batcher[FinishRequest, FinishResult](
            service.finish_jobs, self._threads, limits, metrics.batches("finish")
        )
        self._finish_many = Batcher[FinishRequest, FinishResult](
            partial(service.finish_jobs, view=JobView.BASIC),
            self._threads,
            limits,
            metrics.batches("finish_many"),
        )

    def start(self) -> None:
        """Listen to news, and look now and then without. On the loop."""
        loop = asyncio.get_running_loop()
        self._signals.ready.subscribe(on_loop(loop, self._claims.wake))
        self._signals.revoked.subscribe(on_loop(loop, self._revocations.wake))
        self._probing = asyncio.create_task(self._claims.probe_for_ever())

    def heard(self) -> Heard:
        """Return what to tell of other replicas' news. On the loop."""
        loop = asyncio.get_running_loop()
        return Heard(
            ready=on_loop(loop, self._claims.wake),
            revoked=on_loop(loop, self._revocations.wake),
            anything=on_loop(loop, lambda _: self._wake_everybody()),
        )

    def _wake_everybody(self) -> None:
        self._claims.probe()
        self._revocations.wake_all()

    async def claim(self, request: ClaimRequest, wait: timedelta, call: Call) -> ClaimResult:
        """See WorkerService.claim_jobs. Waits for jobs so long at most, if there are none.

        Raises TooManyWaiters too. The caller gives back what it can't use.
        """
        if not wait:
            return await self._claim_once(request, call)
        until = _until(wait, call)
        with self._claims.waiting(request.run_types) as waiter:
            while True:
                self._claims.looks(waiter)
                result = await self._claim_once(request, call)
                if result.more or len(result.claims) >= request.max_jobs:
                    self._claims.found_all(waiter)
                if result.claims or not await self.room.sleep(waiter.woken, until):
                    return result

    async def _claim_once(self, request: ClaimRequest, call: Call) -> ClaimResult:
        size = request.max_jobs * self._limits.size // _MOST_CLAIMED
        result = await self._claim.submit(request, size=size, deadline=call.deadline)
        for claim in result.claims:
            self._given.labels(claim.job.run_type.value).inc()
        return result

    async def heartbeat(
        self, request: HeartbeatRequest, wait: timedelta, call: Call
    ) -> list[HeartbeatResult]:
        """See WorkerService.heartbeat_jobs. Waits so long at most for one of the jobs to be revoked.

        Raises TooManyWaiters too.
        """
        if not wait:
            return await self._heartbeat_once(request, call)
        until, began = _until(wait, call), time.monotonic()
        with self._revocations.waiting([lease.job_id for lease in request.leases]) as woken:
            results = await self._heartbeat_once(request, call)
            until = min(until, began + _third_of_the_shortest(request, results))
            # What was reported is reported.
            again = _without_progress(request)
            while _all_renewed(results) and time.monotonic() < until:
                await self.room.sleep(woken, min(until, time.monotonic() + jittered(CHECK_SECONDS)))
                if self.room.closed:
                    break
                woken.clear()
                before, results = results, await self._heartbeat_once(again, call)
                if _is_at_its_end(before, results):
                    break
        return results

    async def _heartbeat_once(self, request: HeartbeatRequest, call: Call) -> list[HeartbeatResult]:
        size = len(request.leases) * self._limits.size // _MOST_RENEWED
        return await self._heartbeat.submit(request, size=size, deadline=call.deadline)

    async def finish(self, request: FinishRequest, call: Call) -> FinishResult:
        """See WorkerService.finish_jobs."""
        return await self._finish.submit(request, size=_weight(request), deadline=call.deadline)

    async def finish_all(
        self, requests: Sequence[FinishRequest], call: Call
    ) -> list[FinishResult | Exception]:
        """The same for many, the jobs in view BASIC. What concerns one of them alone is its result."""
        weighed = [(request, _weight(request)) for request in requests]
        outcomes = self._finish_many.submit_all(weighed, deadline=call.deadline)
        return list(await asyncio.gather(*outcomes))

    def give_back(self, request: ClaimRequest, claims: Sequence[Claim]) -> None:
        """Release jobs whose worker does not know of them: as if they had not been claimed. On the loop."""
        if not claims:
            return
        releases = [
            FinishRequest(request.caller, claim.job.job_id, claim.lease_token, Release(unseen=True))
            for claim in claims
        ]
        try:
            outcomes = self._finish_many.submit_all([(release, 1) for release in releases], at_any_rate=True)
        except ShuttingDown:
            _log.warning("claims could not be given back", extra={"fields": {"jobs": len(claims)}})
            return
        for outcome in outcomes:
            outcome.add_done_callback(_log_failure)

    def _give_back_all(self, request: ClaimRequest, result: ClaimResult) -> None:
        self.give_back(request, result.claims)

    async def close(self) -> None:
        """Refuse new work and finish what was taken, or cut it off after _CLOSE_SECONDS."""
        self.room.close()
        if self._probing is not None:
            self._probing.cancel()
        closing = asyncio.ensure_future(self._close_batchers())
        try:
            await asyncio.wait_for(asyncio.shield(closing), _CLOSE_SECONDS)
        except TimeoutError:
            self._abort()
            await closing
        self._threads.shutdown()

    async def _close_batchers(self) -> None:
        # Claims that nobody takes any more are given back.
        await asyncio.gather(self._claim.close(), self._heartbeat.close())
        await asyncio.gather(self._finish.close(), self._finish_many.close())


def _until(wait: timedelta, call: Call) -> float:
    until = time.monotonic() + wait.total_seconds()
    return until if call.deadline is None else min(until, call.deadline - _BEFORE_DEADLINE)


def _all_renewed(results: Sequence[HeartbeatResult]) -> bool:
    return all(result.state is LeaseState.RENEWED for result in results)


def _third_of_the_shortest(request: HeartbeatRequest, results: Sequence[HeartbeatResult]) -> float:
    """Seconds. A lease that its job's run_timeout cuts short is known beside one that it does not cut."""
    expiries = [result.lease_expire_time for result in results if result.lease_expire_time is not None]
    difference = max(expiries) - min(expiries) if expiries else timedelta(0)
    return (request.lease_duration - difference).total_seconds() / 3


def _is_at_its_end(before: Sequence[HeartbeatResult], after: Sequence[HeartbeatResult]) -> bool:
    """Whether a lease could not be prolonged: its job's run_timeout is near."""
    return any(old.lease_expire_time == new.lease_expire_time for old, new in zip(before, after, strict=True))


def _without_progress(request: HeartbeatRequest) -> HeartbeatRequest:
    leases = tuple(Heartbeat(lease.job_id, lease.lease_token) for lease in request.leases)
    return HeartbeatRequest(caller=request.caller, leases=leases, lease_duration=request.lease_duration)


def _weight(request: FinishRequest) -> int:
    return request.outcome.summary_bytes if isinstance(request.outcome, Completion) else 1


def _log_failure(outcome: "asyncio.Future[FinishResult | Exception]") -> None:
    error = None if outcome.cancelled() else outcome.result()
    # A job that was cancelled meanwhile is nobody's to give back.
    if isinstance(error, Exception) and not isinstance(error, JobsError):
        _log.error("a claim could not be given back", exc_info=error)
