"""The core as the event loop sees it: one batcher for each plural operation, threads for the others."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from jobs_service.core.access_changes import AccessChanges
from jobs_service.core.access_service import AccessService
from jobs_service.core.job_service import JobService
from jobs_service.model.access import PermissionsPage, PermissionsRequest
from jobs_service.model.caller import Caller
from jobs_service.model.errors import JobsError, Overloaded, ShuttingDown
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import (
    BatchCancelRequest,
    BatchCancelResult,
    BatchGetRequest,
    CancelRequest,
    CreateRequest,
    CreateResult,
    GetRequest,
    ListRequest,
    Page,
    RetryRequest,
)
from jobs_service.telemetry import traces
from jobs_service.telemetry.batch_metrics import BatchMetrics
from jobs_service.telemetry.metrics import Metrics
from jobs_service.transport.batcher import Batcher, Limits, run_again
from jobs_service.transport.call import Call

T = TypeVar("T")

BATCHERS = 7
"""One each: creating, cancelling, retrying, reading in three views, looking up users."""
_CLOSE_SECONDS = 2.0


class Operations:
    """Runs the core's operations for calls.

    read_seconds: for a list whose caller has no deadline. abort: cuts the database connections in use.
    """

    def __init__(
        self,
        job_service: JobService,
        access_service: AccessService,
        *,
        limits: Limits,
        list_threads: int,
        read_seconds: float,
        abort: Callable[[], None],
        metrics: Metrics | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        self._job_service = job_service
        self._limits = limits
        self._read_seconds = read_seconds
        self._abort = abort
        self._batch_threads = ThreadPoolExecutor(BATCHERS, thread_name_prefix="batch")
        self._list_threads = ThreadPoolExecutor(list_threads, thread_name_prefix="list")
        self._lists_waiting = 0
        self._list_metrics = metrics.batches("list")
        self._list_metrics.waiting_are(lambda: max(0, self._lists_waiting - list_threads))
        self._many_metrics = {name: metrics.batches(f"batch_{name}") for name in ("create", "get", "cancel")}
        self._access_service = access_service
        self._access_metrics = metrics.batches("access")
        self._closed = False
        self._users = Batcher[str, int | None](
            access_service.find_user_ids, self._batch_threads, limits, metrics.batches("find_user")
        )
        self._create = Batcher[CreateRequest, CreateResult](
            job_service.create_jobs, self._batch_threads, limits, metrics.batches("create")
        )
        self._cancel = Batcher[CancelRequest, Job](
            job_service.cancel_jobs, self._batch_threads, limits, metrics.batches("cancel")
        )
        self._retry = Batcher[RetryRequest, Job](
            job_service.retry_jobs, self._batch_threads, limits, metrics.batches("retry")
        )
        self._get = {
            view: Batcher[GetRequest, Job](
                partial(job_service.get_jobs, view=view),
                self._batch_threads,
                limits,
                metrics.batches(f"get_{view.lower()}"),
            )
            for view in JobView
        }

    async def find_user_id(self, soeid: str, call: Call) -> int | None:
        """Return the id of a SOEID, None for nobody."""
        return await self._users.submit(soeid, deadline=call.deadline)

    async def create(self, request: CreateRequest, call: Call) -> CreateResult:
        """See JobService.create_jobs."""
        size = request.job.payload_bytes
        return await self._create.submit(request, size=size, deadline=call.deadline)

    async def get(self, request: GetRequest, view: JobView, call: Call) -> Job:
        """See JobService.get_jobs."""
        return await self._get[view].submit(request, deadline=call.deadline)

    async def cancel(self, request: CancelRequest, call: Call) -> Job:
        """See JobService.cancel_jobs."""
        return await self._cancel.submit(request, deadline=call.deadline)

    async def retry(self, request: RetryRequest, call: Call) -> Job:
        """See JobService.retry_jobs."""
        return await self._retry.submit(request, deadline=call.deadline)

    async def list(self, request: ListRequest, call: Call) -> Page:
        """See JobService.list_jobs. Not batched: a list has its caller's time, and a thread to itself."""
        return await self._on_a_thread(
            lambda seconds: self._job_service.list_jobs(request, seconds=seconds), call, self._list_metrics
        )

    async def get_batch(self, request: BatchGetRequest, call: Call) -> Sequence[Job | JobsError]:
        """See JobService.get_batch."""
        return await self._on_a_thread(
            lambda seconds: self._job_service.get_batch(request, seconds=seconds),
            call,
            self._many_metrics["get"],
        )

    async def create_batch(self, requests: Sequence[CreateRequest], call: Call) -> Sequence[CreateResult]:
        """See JobService.create_batch."""
        return await self._on_a_thread(
            lambda _: self._job_service.create_batch(requests), call, self._many_metrics["create"]
        )

    async def cancel_batch(self, request: BatchCancelRequest, call: Call) -> BatchCancelResult:
        """See JobService.cancel_batch."""
        return await self._on_a_thread(
            lambda seconds: self._job_service.cancel_batch(request, seconds=seconds),
            call,
            self._many_metrics["cancel"],
        )

    async def list_permissions(self, request: PermissionsRequest, by: Caller, call: Call) -> PermissionsPage:
        """See AccessService.list_permissions."""
        return await self._on_a_thread(
            lambda seconds: self._access_service.list_permissions(request, by=by, seconds=seconds),
            call,
            self._access_metrics,
        )

    async def change_access(self, change: Callable[[AccessChanges], T], by: Caller, call: Call) -> T:
        """Make one change. They are few, and one waits for the other in the database anyway."""
        changes = self._access_service.changes(by=by)
        return await self._on_a_thread(lambda _: change(changes), call, self._access_metrics)

    async def _on_a_thread(self, run: Callable[[float], T], call: Call, metrics: BatchMetrics) -> T:
        """Run one transaction, again where it was surely rolled back. run: is told its caller's seconds."""
        if self._closed:
            raise ShuttingDown
        if self._lists_waiting >= self._limits.waiting:
            metrics.refused.inc()
            raise Overloaded(limit=self._limits.waiting, resource="waiting calls")
        latest = time.monotonic() + self._limits.patience
        span = traces.active()

        def attempt() -> T:
            if time.monotonic() > latest:
                raise Overloaded(limit=f"{self._limits.patience:g}", resource="seconds of waiting")
            seconds = call.seconds_left(self._read_seconds)
            with traces.using(span):
                return run_again(lambda: run(seconds), metrics)

        loop = asyncio.get_running_loop()
        listing = self._list_threads.submit(attempt)
        self._lists_waiting += 1
        # A caller that leaves does not end the work of a thread: until that has ended, it counts.
        listing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._list_ended))
        return await asyncio.wrap_future(listing)

    def _list_ended(self) -> None:
        self._lists_waiting -= 1

    async def close(self) -> None:
        """Refuse new work and finish what was taken, or cut it off after _CLOSE_SECONDS."""
        self._closed = True
        batchers: list[Batcher[Any, Any]] = [
            self._create,
            self._cancel,
            self._retry,
            *self._get.values(),
            self._users,
        ]
        lists = asyncio.to_thread(self._list_threads.shutdown, cancel_futures=True)
        closing = asyncio.gather(lists, *(batcher.close() for batcher in batchers))
        try:
            await asyncio.wait_for(asyncio.shield(closing), _CLOSE_SECONDS)
        except TimeoutError:
            # By now every caller has its answer or is gone: what still runs runs for nobody.
            self._abort()
            await closing
        self._batch_threads.shutdown()
