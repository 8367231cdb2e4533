"""The seam between the event loop and the core: many calls of one operation, one plural core call.

Calls that come while a batch runs wait and go together as the next one: under load batches grow by
themselves, and a lone caller goes at once. Each caller gets its own result or its own error.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobs_service.model.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    JobsError,
    Overloaded,
    ShuttingDown,
    TransactionRolledBack,
)
from jobs_service.telemetry import traces
from jobs_service.telemetry.batch_metrics import BatchMetrics
from jobs_service.telemetry.metrics import Metrics
from jobs_service.telemetry.traces import Span

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3
"""How often a transaction that was surely rolled back is run."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """rows, size: of one batch; size in whatever unit callers weigh items in. waiting: calls in the queue.

    seconds: after this long no part of a failed batch is tried again. patience: how many seconds a call
    may wait for its batch to begin.
    """

    rows: int = 100
    size: int = 8 * 1024 * 1024
    waiting: int = 2_000
    seconds: float = 10.0
    patience: float = 10.0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    deadline: float | None
    span: Span | None
    since: float
    outcome: "asyncio.Future[Result | Exception]"


class Batcher(Generic[Item, Result]):
    """Runs one operation in batches, one batch at a time, on a thread of the executor.

    run: the plural core call: as many results as items, in order; a refusal is a JobsError among
    them. What it raises is about the whole batch: DatabaseUnavailable (the answer for all) and
    anything else, for which the batch is split until the item that caused it stands alone.
    abandoned: called on the loop with a result whose caller has left before it was there.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | JobsError]],
        executor: Executor,
        limits: Limits,
        metrics: BatchMetrics | None = None,
        abandoned: Callable[[Item, Result], None] = lambda _item, _result: None,
    ) -> None:
        self._run = run
        self._abandoned = abandoned
        self._executor = executor
        self._limits = limits
        # In order of arrival; whoever leaves is taken out at once, with what it holds.
        self._queue: OrderedDict[_Waiting[Item, Result], None] = OrderedDict()
        self._watch: asyncio.TimerHandle | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._metrics = metrics or Metrics().batches("")
        self._metrics.waiting_are(lambda: len(self._queue))

    async def submit(self, item: Item, *, size: int = 1, deadline: float | None = None) -> Result:
        """Run the operation for one item.

        deadline: on the monotonic clock; an item whose batch has not begun by then is not run and
        raises DeadlineExceeded. Raises Overloaded when the queue is full or was for too long (the item
        was not run), ShuttingDown after close, and the item's own error.
        """
        waiting = self._enqueue([(item, size)], deadline)[0]
        try:
            # A caller that leaves cancels this future alone: the batch it is in goes on.
            outcome = await waiting.outcome
        except asyncio.CancelledError:
            if waiting.outcome.done() and not waiting.outcome.cancelled():
                # It was there, and the caller left before it could take it.
                self._abandon(waiting, waiting.outcome.result())
            raise
        finally:
            self._queue.pop(waiting, None)
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)
        return outcome

    def submit_all(
        self, items: Sequence[tuple[Item, int]], *, deadline: float | None = None, at_any_rate: bool = False
    ) -> "list[asyncio.Future[Result | Exception]]":
        """Queue many items, each with its size, at once; returns their outcomes to come.

        What is raised for all of them is as for one; an error of one item is its outcome. at_any_rate: in
        a full queue too.
        """
        queued = self._enqueue(items, deadline, at_any_rate=at_any_rate)
        return [waiting.outcome for waiting in queued]

    def _enqueue(
        self, items: Sequence[tuple[Item, int]], deadline: float | None, *, at_any_rate: bool = False
    ) -> list[_Waiting[Item, Result]]:
        if self._closed:
            raise ShuttingDown
        if len(self._queue) >= self._limits.waiting and not at_any_rate:
            self._metrics.refused.inc()
            raise Overloaded(limit=self._limits.waiting, resource="waiting calls")
        loop = asyncio.get_running_loop()
        span, now = traces.active(), time.monotonic()
        queued = [
            _Waiting[Item, Result](item, size, deadline, span, now, loop.create_future())
            for item, size in items
        ]
        self._queue.update(dict.fromkeys(queued))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        if self._watch is None:
            self._watch = loop.call_later(self._limits.patience, self._expire)
        return queued

    async def close(self) -> None:
        """Refuse new items, and wait for those that were taken."""
        self._closed = True
        if self._worker is not None:
            await self._worker
        if self._watch is not None:
            self._watch.cancel()

    async def _work(self) -> None:
        try:
            while self._queue:
                batch = self._take()
                if batch:
                    for waiting, outcome in zip(batch, await self._outcomes(batch), strict=True):
                        if waiting.outcome.done():
                            self._abandon(waiting, outcome)
                        else:
                            waiting.outcome.set_result(outcome)
        finally:
            self._worker = None

    def _abandon(self, waiting: _Waiting[Item, Result], outcome: Result | Exception) -> None:
        """Nobody takes this outcome. Raises nothing: the other callers wait for theirs."""
        if not isinstance(outcome, Exception):
            try:
                self._abandoned(waiting.item, outcome)
            except Exception:
                _log.exception("an abandoned result could not be dealt with")

    async def _outcomes(self, batch: Sequence[_Waiting[Item, Result]]) -> Sequence[Result | Exception]:
        """Run the batch. Never raises: nobody may wait for ever, whatever happened."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self._attempt, batch)
        except (RuntimeError, asyncio.CancelledError):
            # The executor is shut.
            return [ShuttingDown()] * len(batch)
        except Exception as error:
            return [error] * len(batch)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The next batch, without those who have left and those whose time is up."""
        batch: list[_Waiting[Item, Result]] = []
        size, now = 0, time.monotonic()
        while self._queue and len(batch) < self._limits.rows:
            waiting = next(iter(self._queue))
            if batch and size + waiting.size > self._limits.size:
                break
            del self._queue[waiting]
            if waiting.outcome.done():
                continue
            if waiting.deadline is not None and waiting.deadline <= now:
                waiting.outcome.set_result(DeadlineExceeded())
                continue
            size += waiting.size
            batch.append(waiting)
        return batch

    def _expire(self) -> None:
        """Refuse those who have waited for too long, also while a batch stands still."""
        self._watch = None
        now = time.monotonic()
        while self._queue:
            waiting = next(iter(self._queue))
            left = waiting.since + self._limits.patience - now
            if left > 0:
                # Not at every arrival: one timer for all, set to the oldest.
                self._watch = asyncio.get_running_loop().call_later(left, self._expire)
                return
            del self._queue[waiting]
            if not waiting.outcome.done():
                self._metrics.refused.inc()
                error = Overloaded(limit=f"{self._limits.patience:g}", resource="seconds of waiting")
                waiting.outcome.set_result(error)

    def _attempt(self, batch: Sequence[_Waiting[Item, Result]]) -> list[Result | Exception]:
        now = time.monotonic()
        with (
            self._metrics.running([now - waiting.since for waiting in batch]),
            traces.batch(self._metrics.operation, [waiting.span for waiting in batch]),
        ):
            return run_split(
                self._run,
                [waiting.item for waiting in batch],
                give_up=now + self._limits.seconds,
                metrics=self._metrics,
            )


def run_split(
    run: Callable[[Sequence[Item]], Sequence[Result | JobsError]],
    items: Sequence[Item],
    *,
    give_up: float,
    metrics: BatchMetrics,
) -> list[Result | Exception]:
    """Run the items together; where that raises, in halves. Never raises; an outcome for each item.

    give_up: on the monotonic clock; after it nothing is split any more.
    """
    try:
        results = run_again(lambda: run(items), metrics)
    except DatabaseUnavailable as error:
        # Perhaps committed, perhaps not: to run any part of it again could do it twice.
        return [error] * len(items)
    except Exception as error:
        if len(items) == 1:
            return [error]
        if time.monotonic() > give_up:
            return [DatabaseUnavailable()] * len(items)
        metrics.splits.inc()
        _log.warning("a batch is split", extra={"fields": {"rows": len(items), "error": repr(error)}})
    else:
        if len(results) == len(items):
            return list(results)
        # Done is done: to split it now would do it again.
        return [RuntimeError(f"{len(items)} items gave {len(results)} results")] * len(items)
    half = len(items) // 2
    return [
        *run_split(run, items[:half], give_up=give_up, metrics=metrics),
        *run_split(run, items[half:], give_up=give_up, metrics=metrics),
    ]


def run_again(run: Callable[[], Result], metrics: BatchMetrics) -> Result:
    """Run a transaction, again where it was surely rolled back (a deadlock, a lost connection)."""
    for _ in range(TRIES - 1):
        try:
            return run()
        except TransactionRolledBack:
            metrics.reruns.inc()
            # On a worker thread, never on the loop. At random, or two that collided do so again.
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - no secret
    return run()
