"""The rules of the seam between the event loop and the core, with a plain function as the operation."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs_service.model.errors import DeadlineExceeded, JobsError, Overloaded, RowLocked, ShuttingDown
from jobs_service.transport.batcher import Batcher, Limits
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
