"""Who is woken, in which order, and that no news get lost. On a loop, with nothing behind it."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import pytest

from jobs_service.model.errors import TooManyWaiters
from jobs_service.model.job import RunType
from jobs_service.transport.waiters import ClaimWaiter, ClaimWaiters, RevocationWaiters, WaitingRoom
from tests.support.batching import PATIENCE, on_a_loop

IMPORT, SAMPLING = frozenset([RunType.IMPORT]), frozenset([RunType.SAMPLING])
BOTH = IMPORT | SAMPLING


class Claims:
    """Waiters of one ClaimWaiters, each of which has looked once and found nothing."""

    def __init__(self, *sets: frozenset[RunType]) -> None:
        self.all = ClaimWaiters()
        self._stack = ExitStack()
        self.waiters = [self.enter(run_types) for run_types in sets]

    def enter(self, run_types: frozenset[RunType]) -> ClaimWaiter:
        waiter = self._stack.enter_context(self.all.waiting(run_types))
        self.all.looks(waiter)
        return waiter

    @property
    def woken(self) -> list[int]:
        """The places of those that are woken."""
        return [place for place, waiter in enumerate(self.waiters) if waiter.woken.is_set()]


def test_one_is_woken_the_oldest_first() -> None:
    claims = Claims(IMPORT, IMPORT, IMPORT)
    claims.all.wake(IMPORT)
    assert claims.woken == [0]
    claims.all.wake(IMPORT)
    assert claims.woken == [0, 1]


def test_only_those_are_woken_who_wait_for_that_run_type() -> None:
    claims = Claims(SAMPLING, SAMPLING, BOTH)
    claims.all.wake(IMPORT)
    assert claims.woken == [2]


def test_news_of_two_run_types_wake_one_waiter_that_can_do_both_or_two_that_can_not() -> None:
    claims = Claims(BOTH, BOTH)
    claims.all.wake(BOTH)
    assert claims.woken == [0]
    claims = Claims(IMPORT, IMPORT, SAMPLING, SAMPLING)
    claims.all.wake(BOTH)
    assert claims.woken == [0, 2]


def test_who_finds_nothing_is_the_first_to_be_woken_again() -> None:
    claims = Claims(IMPORT, IMPORT)
    claims.all.wake(IMPORT)
    claims.all.looks(claims.waiters[0])
    assert claims.woken == []
    claims.all.wake(IMPORT)
    assert claims.woken == [0]


def test_who_finds_all_that_it_asked_for_wakes_two_more_and_is_not_woken_itself() -> None:
    claims = Claims(*[IMPORT] * 5)
    claims.all.wake(IMPORT)
    claims.all.looks(claims.waiters[0])
    claims.all.found_all(claims.waiters[0])
    assert claims.woken == [1, 2]


def test_a_thousand_waiters_are_woken_in_few_steps_when_there_is_a_job_for_each() -> None:
    claims, looked, steps = Claims(*[IMPORT] * 1000), set[int](), 0
    claims.all.wake(IMPORT)
    while len(looked) < 1000:
        woken = claims.woken
        assert woken, "somebody was forgotten"
        steps += 1
        for place in woken:
            claims.all.looks(claims.waiters[place])
            claims.all.found_all(claims.waiters[place])
            looked.add(place)
    assert steps == 10


def test_news_that_come_while_a_waiter_looks_make_it_look_again() -> None:
    claims = Claims(IMPORT)
    claims.all.looks(claims.waiters[0])
    claims.all.wake(IMPORT)
    assert claims.woken == [0]


def test_news_that_come_before_the_first_look_and_after_the_entering_are_not_lost() -> None:
    waiters = ClaimWaiters()
    with waiters.waiting(IMPORT) as waiter:
        waiters.wake(IMPORT)
        assert waiter.woken.is_set()


def test_a_waiter_that_was_woken_and_leaves_without_a_look_wakes_the_next() -> None:
    claims = Claims(IMPORT)
    with claims.all.waiting(IMPORT) as leaving:
        claims.all.wake(IMPORT)
        claims.all.wake(IMPORT)
        assert leaving.woken.is_set()
        claims.all.looks(claims.waiters[0])
    assert claims.woken == [0]


def test_a_waiter_that_left_is_not_woken_and_not_remembered() -> None:
    waiters = ClaimWaiters()
    with waiters.waiting(BOTH) as left:
        pass
    waiters.wake(BOTH)
    waiters.probe()
    assert not left.woken.is_set()
    assert not any(waiters._idle.values())


def test_a_probe_wakes_one_waiter_for_each_set_of_run_types() -> None:
    claims = Claims(IMPORT, IMPORT, BOTH, BOTH, SAMPLING)
    claims.all.probe()
    assert claims.woken == [0, 2, 4]


def test_a_heartbeat_is_woken_for_its_own_jobs_alone_and_forgotten_when_it_leaves() -> None:
    waiters: Any = RevocationWaiters()
    with waiters.waiting(["a", "b", "a"]) as first, waiters.waiting(["b"]) as second:
        waiters.wake(["a", "c"])
        assert (first.is_set(), second.is_set()) == (True, False)
        waiters.wake_all()
        assert second.is_set()
    assert waiters._waiting == {}


@on_a_loop
async def test_a_sleeper_goes_on_when_it_is_woken_and_stops_when_its_time_is_over() -> None:
    room, woken = WaitingRoom(1), asyncio.Event()
    sleeping = asyncio.create_task(room.sleep(woken, time.monotonic() + PATIENCE))
    await asyncio.sleep(0)
    assert room.count == 1
    woken.set()
    assert await sleeping
    assert room.count == 0
    assert not await room.sleep(asyncio.Event(), time.monotonic() + 0.01)
    assert not await room.sleep(asyncio.Event(), time.monotonic() - 1)


@on_a_loop
async def test_no_more_may_sleep_than_there_are_places() -> None:
    room = WaitingRoom(1)
    sleeping = asyncio.create_task(room.sleep(asyncio.Event(), time.monotonic() + PATIENCE))
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaiters) as refused:
        await room.sleep(asyncio.Event(), time.monotonic() + PATIENCE)
    assert refused.value.metadata == {"limit": "1"}
    sleeping.cancel()
    await asyncio.wait([sleeping])
    assert sleeping.cancelled()
    assert room.count == 0


@on_a_loop
async def test_a_room_that_closes_wakes_all_and_lets_nobody_sleep() -> None:
    room = WaitingRoom(10)
    sleeping = [
        asyncio.create_task(room.sleep(asyncio.Event(), time.monotonic() + PATIENCE)) for _ in range(3)
    ]
    await asyncio.sleep(0)
    room.close()
    assert await asyncio.gather(*sleeping) == [False] * 3
    assert not await room.sleep(asyncio.Event(), time.monotonic() + PATIENCE)
