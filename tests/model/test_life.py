"""Random lives of jobs against a reference model, all invariants looked at after every step.

A failure prints its seed and its step; TESTS_MODEL_SEED=<seed> lives that life again.
"""

import os
from collections import Counter
from contextlib import nullcontext
from unittest.mock import patch

import pytest

from jobs_service.core import dependants
from tests.model.life import Life
from tests.support.postgres import PostgresServer
from tests.support.world import World

STEPS = 120
LONG_STEPS = 300
SEEDS = (1, 2)
LONG_SEEDS = range(100, 112)
OWN_SEED = os.environ.get("TESTS_MODEL_SEED")


def live(world: World, seed: int, steps: int) -> Counter[str]:
    """Live so long, and let everything end; what was done and how often."""
    life = Life(world, seed)
    step = 0
    # So few that most are left to upkeep, with every other seed.
    few = patch.multiple(dependants, PORTION=1, UPKEEP_PORTION=2, PICKED=1)
    try:
        with few if seed % 2 else nullcontext():
            for step in range(steps):  # noqa: B007 - named in the note
                life.step()
            life.end()
    except BaseException as error:
        error.add_note(f"seed {seed}, step {step}: {life.last}; TESTS_MODEL_SEED={seed} does it again")
        raise
    return life.done


@pytest.mark.parametrize("seed", [int(OWN_SEED)] if OWN_SEED else SEEDS)
def test_jobs_live_as_the_reference_says(stored_world: World, seed: int) -> None:
    done = live(stored_world, seed, LONG_STEPS if OWN_SEED else STEPS)
    assert done["claimed"] > STEPS // 10


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_jobs_live_as_the_reference_says(postgres_18: PostgresServer) -> None:
    done: Counter[str] = Counter()
    for seed in LONG_SEEDS:
        world = World(postgres_18.new_database())
        try:
            done += live(world, seed, LONG_STEPS)
        finally:
            world.close()
    # Whatever can happen has happened.
    rare = {"claimed", "expired", "purged", "create DependencyNotFound", "create DependencyNotSatisfiable"}
    rare |= {"finish LeaseLost", "retry OK", "retry DependencyNotSatisfiable", "cancel JobNotCancellable"}
    assert rare <= done.keys(), done
