"""Calls that wait for something to happen: claims for jobs that are ready, heartbeats for jobs to be revoked.

Everything here belongs to the event loop, and holds nothing but memory: a call that waits has no thread, no
connection and no place in a batch. News are hints. Who is woken looks into the database again, and whoever
was not woken in time looks by himself now and then.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from jobs_service.model.errors import TooManyWaiters
from jobs_service.model.job import RunType

PROBE_SECONDS = 1.0
"""How often one of the claims that wait for the same run types looks, whatever it was told."""
CHECK_SECONDS = 5.0
"""How often a heartbeat that waits looks, whatever it was told."""
_JITTER = 0.2
_CHAIN = 2
"""How many claims the one that found jobs, and as many as it asked for, wakes for the next ones.

Two: a thousand are woken in ten steps, each of them one batch or a few.
"""


def jittered(seconds: float) -> float:
    """Return about as many seconds: replicas that started together must not go on together."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


class WaitingRoom:
    """Bounds how many calls wait, and ends the waiting when the process ends.

    limit: calls that may wait at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sleeping: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def count(self) -> int:
        """How many calls wait."""
        return len(self._sleeping)

    @property
    def closed(self) -> bool:
        """Whether nobody may wait any more."""
        return self._closed

    async def sleep(self, woken: asyncio.Event, until: float) -> bool:
        """Wait until woken, or for the moment on the monotonic clock; whether to go on.

        False once the time is over, or the room closed. Raises TooManyWaiters.
        """
        if woken.is_set():
            return not self._closed
        seconds = until - time.monotonic()
        if self._closed or seconds <= 0:
            return False
        if len(self._sleeping) >= self._limit:
            raise TooManyWaiters(limit=self._limit)
        sleep = asyncio.ensure_future(_within(woken, seconds))
        self._sleeping.add(sleep)
        try:
            await sleep
        except asyncio.CancelledError:
            # Ended by us, and not the call itself.
            if not self._closed or _is_cancelled():
                raise
            return False
        finally:
            sleep.cancel()
            self._sleeping.discard(sleep)
        return woken.is_set() and not self._closed

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        for sleep in list(self._sleeping):
            sleep.cancel()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _within(woken: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        pass


class ClaimWaiter:
    """A claim that waits for jobs of some run types. woken: it is its turn to look."""

    def __init__(self, run_types: frozenset[RunType]) -> None:
        self.run_types = run_types
        self.woken = asyncio.Event()


class ClaimWaiters:
    """Wakes claims, the oldest first, and no more of them than there may be jobs for.

    One is woken for each run type of which jobs became ready. It looks, and if it finds as many as it asked
    for it wakes the next ones. A waiter that was woken and leaves without having looked since wakes another
    in its place: no news get lost with it.
    """

    def __init__(self) -> None:
        # Of each run type those that are not woken, the oldest first.
        self._idle: dict[RunType, OrderedDict[ClaimWaiter, None]] = {
            run_type: OrderedDict() for run_type in RunType
        }

    @contextmanager
    def waiting(self, run_types: frozenset[RunType]) -> Iterator[ClaimWaiter]:
        """Wait for as long as the block lasts. Enter it before looking: what comes after is not missed."""
        waiter = ClaimWaiter(run_types)
        for run_type in run_types:
            self._idle[run_type][waiter] = None
        try:
            yield waiter
        finally:
            self._remove(waiter)
            if waiter.woken.is_set():
                self.wake(waiter.run_types)

    def looks(self, waiter: ClaimWaiter) -> None:
        """It looks now: what it was told before is dealt with, what it is told from now on is not."""
        if waiter.woken.is_set():
            waiter.woken.clear()
            for run_type in waiter.run_types:
                self._idle[run_type][waiter] = None
                # It was the oldest, or it would not have been woken.
                self._idle[run_type].move_to_end(waiter, last=False)

    def found_all(self, waiter: ClaimWaiter) -> None:
        """It found as many jobs as it asked for: there may be more."""
        self._remove(waiter)
        for _ in range(_CHAIN):
            self.wake(waiter.run_types)

    def wake(self, run_types: Collection[RunType]) -> None:
        """There may be jobs of these run types: wake one waiter for each, one for several if it can."""
        left = set(run_types)
        for run_type in sorted(left):
            waiter = next(iter(self._idle[run_type]), None)
            if waiter is not None and run_type in left:
                self._wake(waiter)
                left -= waiter.run_types

    def probe(self) -> None:
        """Wake one waiter of each set of run types."""
        waiters = OrderedDict[ClaimWaiter, None]()
        for idle in self._idle.values():
            waiters.update(idle)
        seen: set[frozenset[RunType]] = set()
        for waiter in waiters:
            if waiter.run_types not in seen:
                seen.add(waiter.run_types)
                self._wake(waiter)

    async def probe_for_ever(self) -> None:
        """Probe now and then, until cancelled."""
        while True:
            await asyncio.sleep(jittered(PROBE_SECONDS))
            self.probe()

    def _wake(self, waiter: ClaimWaiter) -> None:
        self._remove(waiter)
        waiter.woken.set()

    def _remove(self, waiter: ClaimWaiter) -> None:
        for run_type in waiter.run_types:
            self._idle[run_type].pop(waiter, None)


class RevocationWaiters:
    """Wakes heartbeats that wait for one of their jobs to be taken from its worker."""

    def __init__(self) -> None:
        self._waiting: dict[UUID, set[asyncio.Event]] = {}

    @contextmanager
    def waiting(self, job_ids: Collection[UUID]) -> Iterator[asyncio.Event]:
        """Wait for as long as the block lasts; the event is set when it is time to look."""
        woken = asyncio.Event()
        for job_id in job_ids:
            self._waiting.setdefault(job_id, set()).add(woken)
        try:
            yield woken
        finally:
            for job_id in set(job_ids):
                events = self._waiting[job_id]
                events.discard(woken)
                if not events:
                    del self._waiting[job_id]

    def wake(self, job_ids: Collection[UUID]) -> None:
        """These jobs were revoked."""
        for job_id in job_ids:
            for woken in self._waiting.get(job_id, ()):
                woken.set()

    def wake_all(self) -> None:
        """Any job may have been revoked."""
        for events in self._waiting.values():
            for woken in events:
                woken.set()


def on_loop(loop: asyncio.AbstractEventLoop, wake: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return what passes news on to the loop, from any thread. After the loop's end it does nothing."""

    def tell(news: Any) -> None:
        # A set of its own: whoever tells goes on with his.
        news = frozenset(news)
        try:
            loop.call_soon_threadsafe(wake, news)
        except RuntimeError:
            if not loop.is_closed():
                raise

    return tell
