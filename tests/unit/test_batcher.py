"""The rules of the seam between the event loop and the core, with a plain function as the operation."""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jobs_service.model.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    JobsError,
    Overloaded,
    RowLocked,
    ShuttingDown,
    TransactionRolledBack,
)
from jobs_service.transport.batcher import TRIES, Batcher, Limits

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


@on_a_loop
async def test_a_lone_caller_goes_at_once() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        assert await batcher.submit(1) == 2
        assert await batcher.submit(2) == 4
    assert operation.runs == [[1], [2]]


@on_a_loop
async def test_calls_that_come_while_a_batch_runs_go_together_as_the_next_one_in_order() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 5, 3, 4, 3)
        operation.let_go()
        assert await outcomes(callers) == [0, 10, 6, 8, 6]
    assert operation.runs == [[0], [5, 3, 4, 3]]


@on_a_loop
async def test_batches_of_one_operation_never_run_side_by_side() -> None:
    inside = threading.Lock()

    def run(items: Sequence[int]) -> list[int | JobsError]:
        assert inside.acquire(blocking=False)
        inside.release()
        return list(items)

    with ThreadPoolExecutor(4) as executor:
        batcher = Batcher[int, int](run, executor, Limits(rows=3))
        assert await outcomes(await submitted(batcher, *range(200))) == list(range(200))


@on_a_loop
async def test_a_refusal_is_the_answer_of_one_caller_and_spoils_nobody() -> None:
    class Refusing(Doubling):
        def answer(self, items: Sequence[int]) -> list[int | JobsError]:
            return [RowLocked() if item == 2 else item * 2 for item in items]

    operation = Refusing()
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2, 3)
        operation.let_go()
        _, first, refused, last = await outcomes(callers)
    assert (first, last) == (2, 6)
    assert isinstance(refused, RowLocked)
    assert operation.runs == [[0], [1, 2, 3]]


@on_a_loop
async def test_a_poisoned_item_is_found_by_halving_and_the_others_get_their_results() -> None:
    operation = Failing(ValueError("poison"), 6)
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, *range(1, 9))
        operation.let_go()
        results = await outcomes(callers)
    assert [result for result in results if isinstance(result, int)] == [0, 2, 4, 6, 8, 10, 14, 16]
    assert isinstance(results[6], ValueError)
    assert operation.runs[1:] == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [5, 6],
        [5],
        [6],
        [7, 8],
    ]


@on_a_loop
async def test_two_poisoned_items_are_both_found() -> None:
    operation = Failing(RowLocked(), 1, 8)
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, *range(1, 9))
        operation.let_go()
        results = await outcomes(callers)
    assert [n for n, result in enumerate(results) if isinstance(result, RowLocked)] == [1, 8]
    assert results[2:8] == [4, 6, 8, 10, 12, 14]


@on_a_loop
async def test_after_its_time_a_batch_is_not_halved_any_more() -> None:
    operation = Failing(ValueError("poison"), 1)
    async with batching(operation, seconds=0) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2)
        operation.let_go()
        results = await outcomes(callers)
    assert [type(result) for result in results[1:]] == [DatabaseUnavailable] * 2
    assert operation.runs == [[0], [1, 2]]


@on_a_loop
async def test_a_batch_whose_commit_got_no_answer_is_never_run_again() -> None:
    operation = Failing(DatabaseUnavailable(), 2)
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2, 3)
        operation.let_go()
        results = await outcomes(callers)
        assert [type(result) for result in results[1:]] == [DatabaseUnavailable] * 3
        assert operation.runs == [[0], [1, 2, 3]]
        assert await batcher.submit(1) == 2


@on_a_loop
async def test_a_batch_that_was_rolled_back_is_run_again() -> None:
    class RolledBackOnce(Doubling):
        def answer(self, items: Sequence[int]) -> list[int | JobsError]:
            if len(self.runs) == 2:
                raise TransactionRolledBack
            return super().answer(items)

    operation = RolledBackOnce()
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2)
        operation.let_go()
        assert await outcomes(callers) == [0, 2, 4]
    assert operation.runs == [[0], [1, 2], [1, 2]]


@on_a_loop
async def test_a_batch_that_is_always_rolled_back_is_run_three_times_and_never_halved() -> None:
    operation = Failing(TransactionRolledBack(), 1)
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2)
        operation.let_go()
        results = await outcomes(callers)
    assert [type(result) for result in results[1:]] == [TransactionRolledBack] * 2
    assert TRIES == 3
    assert operation.runs == [[0]] + [[1, 2]] * TRIES


@on_a_loop
async def test_a_full_queue_refuses_the_next_caller_and_says_the_limit() -> None:
    operation = Doubling()
    async with batching(operation, waiting=2) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2)
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit(3)
        assert refusal.value.metadata == {"limit": "2", "resource": "waiting calls"}
        operation.let_go()
        assert await outcomes(callers) == [0, 2, 4]
        assert await batcher.submit(3) == 6


@on_a_loop
async def test_a_caller_whose_time_is_up_before_its_batch_begins_is_dropped_unrun() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        now = time.monotonic()
        late = await behind_a_running_batch(batcher, operation, 1, 2, deadline=now)
        in_time = await submitted(batcher, 3, deadline=now + PATIENCE)
        operation.let_go()
        _, *dropped = await outcomes(late)
        assert [type(result) for result in dropped] == [DeadlineExceeded] * 2
        assert await outcomes(in_time) == [6]
    assert operation.runs == [[0], [3]]


@on_a_loop
async def test_when_all_who_wait_are_late_nothing_runs_and_the_next_caller_is_served() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(1, deadline=time.monotonic())
        assert await batcher.submit(2) == 4
    assert operation.runs == [[2]]


@on_a_loop
async def test_a_caller_that_leaves_while_it_waits_is_not_run() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        first, leaving, staying = await behind_a_running_batch(batcher, operation, 1, 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        operation.let_go()
        assert await outcomes([first, staying]) == [0, 4]
    assert operation.runs == [[0], [2]]


@on_a_loop
async def test_a_caller_that_leaves_while_its_batch_runs_does_not_tear_it() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        operation.hold()
        leaving, staying = await submitted(batcher, 1, 2)
        await operation.running()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        operation.let_go()
        assert await staying == 4
    assert operation.runs == [[1, 2]]


@on_a_loop
async def test_a_batch_is_bounded_in_rows() -> None:
    operation = Doubling()
    async with batching(operation, rows=2) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2, 3, 4, 5)
        operation.let_go()
        assert await outcomes(callers) == [0, 2, 4, 6, 8, 10]
    assert operation.runs == [[0], [1, 2], [3, 4], [5]]


@on_a_loop
async def test_a_batch_is_bounded_in_size_and_one_that_is_too_large_goes_alone() -> None:
    operation = Doubling()
    async with batching(operation, size=10) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2, 3, size=5)
        callers += await submitted(batcher, 4, size=11)
        callers += await submitted(batcher, 5, size=1)
        operation.let_go()
        assert await outcomes(callers) == [0, 2, 4, 6, 8, 10]
    assert operation.runs == [[0], [1, 2], [3], [4], [5]]


@on_a_loop
async def test_close_waits_for_what_was_taken_and_refuses_the_rest() -> None:
    operation = Doubling()
    async with batching(operation) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1, 2)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await batcher.submit(3)
        assert not closing.done()
        operation.let_go()
        await closing
        assert [caller.done() for caller in callers] == [True] * 3
        assert await outcomes(callers) == [0, 2, 4]


@pytest.mark.parametrize("results", [[], [1, 2, 3, 4]])
def test_a_wrong_number_of_results_is_an_error_for_each_item_and_no_hang(results: list[int]) -> None:
    @on_a_loop
    async def scenario() -> None:
        class Miscounting(Doubling):
            def answer(self, items: Sequence[int]) -> list[int | JobsError]:
                return [0] if items[0] == 0 else [*results]

        operation = Miscounting()
        async with batching(operation) as batcher:
            callers = await behind_a_running_batch(batcher, operation, 1, 2, 3)
            operation.let_go()
            _, *wrong = await outcomes(callers)
            assert [type(result) for result in wrong] == [RuntimeError] * 3

    scenario()


@on_a_loop
async def test_callers_of_an_executor_that_is_shut_down_get_an_error() -> None:
    executor = ThreadPoolExecutor(1)
    batcher = Batcher[int, int](Doubling(), executor, Limits())
    executor.shutdown()
    for _ in range(2):
        results = await outcomes(await submitted(batcher, 1, 2))
        assert all(isinstance(result, RuntimeError | ShuttingDown) for result in results)


@on_a_loop
async def test_callers_get_an_error_when_the_executor_drops_the_batch_that_it_was_given() -> None:
    executor = ThreadPoolExecutor(1)
    busy = threading.Event()
    executor.submit(busy.wait, PATIENCE)
    batcher = Batcher[int, int](Doubling(), executor, Limits())
    callers = await submitted(batcher, 1)
    await asyncio.sleep(0)
    callers += await submitted(batcher, 2)
    executor.shutdown(wait=False, cancel_futures=True)
    busy.set()
    done, _ = await asyncio.wait(callers, timeout=0.5)
    for caller in callers:
        caller.cancel()
    assert len(done) == 2, "callers wait for ever"


@on_a_loop
async def test_whatever_the_executor_raises_is_the_answer_for_all_and_the_next_caller_is_served() -> None:
    class Full(ThreadPoolExecutor):
        fails = True

        def submit(self, *args: Any, **options: Any) -> Any:
            if self.fails:
                raise MemoryError
            return super().submit(*args, **options)

    with Full(1) as executor:
        batcher = Batcher[int, int](Doubling(), executor, Limits())
        callers = await submitted(batcher, 1, 2)
        done, _ = await asyncio.wait(callers, timeout=0.5)
        assert len(done) == 2, "callers wait for ever"
        assert all(isinstance(outcome, MemoryError) for outcome in await outcomes(callers))
        executor.fails = False
        assert await batcher.submit(3) == 6


@on_a_loop
async def test_a_result_whose_caller_has_left_is_handed_to_whoever_deals_with_those() -> None:
    operation, abandoned = Doubling(), list[tuple[int, int]]()
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher[int, int](
            operation, executor, Limits(), abandoned=lambda item, result: abandoned.append((item, result))
        )
        operation.hold()
        leaving, staying = await submitted(batcher, 3, 4)
        await operation.running()
        leaving.cancel()
        await asyncio.wait([leaving])
        operation.let_go()
        assert await staying == 8
        await batcher.close()
    assert abandoned == [(3, 6)]


@on_a_loop
async def test_a_caller_that_leaves_between_its_result_and_its_turn_has_left_it_too() -> None:
    operation, abandoned = Doubling(), list[tuple[int, int]]()
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher[int, int](
            operation, executor, Limits(), abandoned=lambda item, result: abandoned.append((item, result))
        )
        operation.hold()
        first = asyncio.create_task(batcher.submit(0))
        await operation.running()

        async def cancels_the_other() -> None:
            await batcher.submit(1)
            caller.cancel()

        canceller = asyncio.create_task(cancels_the_other())
        # Its result is set in the same turn, right after that of the one who cancels it.
        caller = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0)
        operation.let_go()
        await asyncio.wait([first, canceller, caller])
        assert caller.cancelled()
        await batcher.close()
    assert abandoned == [(3, 6)]


@on_a_loop
async def test_many_items_are_queued_at_once_and_each_has_an_outcome_of_its_own() -> None:
    operation = Failing(RowLocked(), 2)
    async with batching(operation) as batcher:
        outcomes = await asyncio.gather(*batcher.submit_all([(1, 1), (2, 1), (3, 1)]))
    assert outcomes[0] == 2
    assert isinstance(outcomes[1], RowLocked)
    assert outcomes[2] == 6


@on_a_loop
async def test_a_full_queue_takes_what_comes_at_any_rate() -> None:
    operation = Doubling()
    async with batching(operation, waiting=1) as batcher:
        callers = await behind_a_running_batch(batcher, operation, 1)
        with pytest.raises(Overloaded):
            batcher.submit_all([(5, 1)])
        own = batcher.submit_all([(5, 1), (6, 1)], at_any_rate=True)
        operation.let_go()
        assert await asyncio.gather(*own) == [10, 12]
        assert await outcomes(callers) == [0, 2]
