"""Time tells a stranger nothing: a job that is hidden takes as long to be refused as one that is not there.

Calls for the two are made in turn, in random order, and compared by ranks: how often does a hidden one
take longer than a missing one? 0.5 means never a difference. The bound is one that two statements more,
or the reading of a large payload, breaks by far, and that a busy machine, which slows both alike, does not.
"""

import random
import time
import uuid
from collections.abc import Callable, Sequence

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client
from tests.support.world import World

PAIRS = 400
BOUND = 0.10
JOB_CALLS = ("GetJob", "GetJobStatus", "CancelJob")
SIZES = {"small": 10, "large": 250_000}


def rank_effect(one: Sequence[float], other: Sequence[float]) -> float:
    """How often a value of one is above one of the other, ties counting half: 0.5 where they are alike."""
    ranked = sorted([(value, True) for value in one] + [(value, False) for value in other])
    ranks = sum(place for place, (_, is_one) in enumerate(ranked, 1) if is_one)
    return (ranks - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    with pytest.raises(grpc.RpcError) as caught:
        call()
    seconds = time.perf_counter() - began
    error: grpc.Call = caught.value  # type: ignore[assignment] # what the stub raises is both
    assert error.code() is grpc.StatusCode.NOT_FOUND
    return seconds


def compared(hidden: Callable[[], object], missing: Callable[[], object], *, seed: str) -> float:
    """The rank effect of PAIRS calls each."""
    dice = random.Random(seed)
    for _ in range(50):
        seconds_of(hidden)
        seconds_of(missing)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(PAIRS):
        for is_hidden in dice.sample([True, False], 2):
            taken[is_hidden].append(seconds_of(hidden if is_hidden else missing))
    return rank_effect(taken[True], taken[False])


def asking(client: Client, rpc: str, job_id: str) -> Callable[[], object]:
    return lambda: client.call(rpc, getattr(jobs_pb2, f"{rpc}Request")(job_id=job_id))


def hidden_job(world: World, size: int) -> str:
    dataset = world.dataset()
    owner = world.client(world.user(grants={dataset: Level.WRITE}))
    parameters = {"file_path": "a", "rest": "x" * size}
    return owner.create(dataset_id=dataset, run_parameters=parameters).job.job_id


def test_the_comparison_sees_a_difference_where_there_is_one() -> None:
    dice = random.Random("noise")
    fast = [dice.lognormvariate(0, 0.2) for _ in range(PAIRS)]
    same = [dice.lognormvariate(0, 0.2) for _ in range(PAIRS)]
    slow = [dice.lognormvariate(0, 0.2) * 1.1 for _ in range(PAIRS)]
    assert abs(rank_effect(same, fast) - 0.5) < BOUND
    assert rank_effect(slow, fast) > 0.5 + BOUND


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rpc", JOB_CALLS)
def test_a_hidden_job_takes_as_long_as_one_that_is_not_there(world: World, rpc: str, size: str) -> None:
    client = world.client(world.user())
    hidden, missing = hidden_job(world, SIZES[size]), str(uuid.uuid4())
    effect = compared(asking(client, rpc, hidden), asking(client, rpc, missing), seed=f"{rpc} {size}")
    assert abs(effect - 0.5) < BOUND, f"{rpc}, {size}: {effect}"
