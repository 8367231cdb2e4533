"""A batcher with a plain function as the operation, its callers, and a loop for them."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.model.errors import JobsError
from jobs_service.transport.batcher import Batcher, Limits

PATIENCE = 10
Run = Callable[[Sequence[int]], Sequence[int | JobsError]]


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run the test on an event loop of its own; what hangs is an error."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    return run


class Doubling:
    """An operation that doubles numbers, notes what it was run with, and can be held while it runs."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self._running = threading.Semaphore(0)
        self._may_end = threading.Event()
        self._may_end.set()

    def __call__(self, items: Sequence[int]) -> list[int | JobsError]:
        self.runs.append(list(items))
        self._running.release()
        assert self._may_end.wait(PATIENCE)
        return self.answer(items)

    def answer(self, items: Sequence[int]) -> list[int | JobsError]:
        return [item * 2 for item in items]

    def hold(self) -> None:
        """Let no run end from now on."""
        self._may_end.clear()

    def let_go(self) -> None:
        """Let all runs end."""
        self._may_end.set()

    async def running(self) -> None:
        """Wait for the next run to begin."""
        assert await asyncio.to_thread(self._running.acquire, timeout=PATIENCE)


class Failing(Doubling):
    """Raises an error whenever one of these numbers is in the batch."""

    def __init__(self, error: Exception, *poison: int) -> None:
        super().__init__()
        self._error = error
        self._poison = set(poison)

    def answer(self, items: Sequence[int]) -> list[int | JobsError]:
        if self._poison.intersection(items):
            raise self._error
        return super().answer(items)


@asynccontextmanager
async def batching(run: Run, **limits: Any) -> AsyncIterator[Batcher[int, int]]:
    """A batcher of this operation, closed at the end."""
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher[int, int](run, executor, Limits(**limits))
        yield batcher
        await batcher.close()


async def submitted(batcher: Batcher[int, int], *items: int, **options: Any) -> list[asyncio.Task[int]]:
    """Callers of these items, each of which has got as far as it can."""
    tasks = [asyncio.create_task(batcher.submit(item, **options)) for item in items]
    # A turn of the loop: every task runs up to where it waits.
    await asyncio.sleep(0)
    return tasks


async def outcomes(tasks: Sequence[asyncio.Task[int]]) -> list[Any]:
    """What each caller got, errors as values."""
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def behind_a_running_batch(
    batcher: Batcher[int, int], operation: Doubling, *items: int, **options: Any
) -> list[asyncio.Task[int]]:
    """Callers that wait behind a batch with the item 0, which runs until the operation is let go."""
    operation.hold()
    first = await submitted(batcher, 0)
    await operation.running()
    return first + await submitted(batcher, *items, **options)
