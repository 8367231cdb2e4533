"""Two minutes of faults under thousands of jobs: each ends once, as its workers said, whatever died."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs_service.model.caller import Level
from jobs_service.transport.tokens import make_token
from tests.e2e.chaos import RECOVERY_SECONDS, Arena, Callers, arena, recoveries
from tests.support.postgres import connect, running_postgres
from tests.support.service import wait_until
from tests.support.work_history import findings
from tests.support.work_rows import one
from tests.support.worker import new_service
from tests.support.world import KEY, World

QUIET_SECONDS = 15.0
END_SECONDS = 240
CREATED_A_SECOND = 15.0
SEED = int(os.environ.get("TESTS_CHAOS_SEED", "1"))

_LEFT = "SELECT count(*) FROM jobs WHERE end_time IS NULL"


def wait_for(moment: float) -> None:
    """Until this moment of the monotonic clock."""
    wait_until(lambda: time.monotonic() >= moment, max(0.0, moment - time.monotonic()) + 5, "a moment")


def left(url: str) -> int:
    """How many jobs have not ended."""
    with connect(url) as sql:
        return int(one(sql, _LEFT))


@dataclass(frozen=True)
class Act:
    """How many jobs, how many of them before the first fault, and how often there is a fault."""

    jobs: int
    at_once: int
    rounds: int
    every: float


# Faults of which the next comes before the last is over; and such as are left alone, to see how soon the
# work goes on as before.
TWO_MINUTES = Act(jobs=3000, at_once=1200, rounds=2, every=10.0)
ONE_BY_ONE = Act(jobs=6500, at_once=5500, rounds=1, every=RECOVERY_SECONDS + 5)


def let_faults_come(act: Act, stage: Arena) -> float:
    """Returns when the first one came, by the clock of the lines."""
    began = time.monotonic() + QUIET_SECONDS
    wait_for(began)
    quiet = time.time()
    for number, fault in enumerate(stage.faults_of_a_run(act.rounds)):
        wait_for(began + number * act.every)
        stage.hit(fault)
    wait_for(time.monotonic() + act.every)
    return quiet


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("act", [TWO_MINUTES, ONE_BY_ONE], ids=["two minutes of faults", "faults one by one"])
def test_every_job_ends_once_and_as_its_workers_said_whatever_dies(
    tmp_path: Path, say: Callable[[object], None], act: Act
) -> None:
    with running_postgres(tmp_path / "postgres") as postgres, arena(postgres, tmp_path, SEED) as stage:
        callers = work_and_faults(act, stage, say)
        assert len(callers.told.created) == act.jobs


def work_and_faults(act: Act, stage: Arena, say: Callable[[object], None]) -> Callers:
    """All of it, until every job has ended and everything is compared."""
    world = World(stage.url)
    datasets = [world.dataset() for _ in range(5)]
    owner, program = world.user(grants=dict.fromkeys(datasets, Level.WRITE)), new_service(world)
    world.close()
    stage.start(make_token(KEY, program.soeid))
    callers = Callers(stage, owner, datasets, SEED)
    try:
        callers.create(act.at_once, a_second=1000)
        callers.cancel_now_and_then()
        creating = callers.begin(act.jobs - act.at_once, a_second=CREATED_A_SECOND)
        quiet = let_faults_come(act, stage)
        creating.result(120)
        callers.stop()
    finally:
        callers.close()
    wait_until(lambda: left(stage.url) == 0, END_SECONDS, "every job ends")
    stage.end()
    require_nothing_wrong(stage, callers, quiet, say)
    return callers


def require_nothing_wrong(
    stage: Arena, callers: Callers, quiet: float, say: Callable[[object], None]
) -> None:
    """AssertionError unless all that was said is so; prints the figures."""
    lines = stage.lines()
    found = findings(stage.url, callers.told, lines)
    say(f"chaos, seed {SEED}: {found}")
    for line in recoveries(stage.faults, lines, quiet=quiet):
        say(f"chaos, {line}")
    assert (found.lost, found.completed_twice, found.completed_after_cancel) == (0, 0, 0)
    assert not found.wrong, "\n".join(found.wrong[:20])
