"""Who gets what when a batch fails, with a plain function as the operation."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobs_service.model.errors import (
    DatabaseUnavailable,
    JobsError,
    RowLocked,
    ShuttingDown,
    TransactionRolledBack,
)
from jobs_service.transport.batcher import TRIES, Batcher, Limits
from tests.support.batching import (
    PATIENCE,
    Doubling,
    Failing,
    batching,
    behind_a_running_batch,
    on_a_loop,
    outcomes,
    submitted,
)


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
