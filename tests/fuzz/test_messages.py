"""Messages that are nearly good, and bytes that are none, in well-formed gRPC: all get a proper refusal.

A failure names its seed: the same seed sends the same inputs again.
"""

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest

from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Target, unharmed
from tests.support.client import Metadata
from tests.support.judge import judged, path_of

DEADLINE = 20.0
AT_ONCE = 100
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED"}
SEED = os.environ.get("TESTS_FUZZ_SEED", "jobs")


@dataclass
class Seen:
    """How many were answered with what, and what was answered wrongly (the first few)."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, rpc: str, data: bytes, error: grpc.aio.AioRpcError) -> None:
        code = error.code().name
        self.codes[code] += 1
        try:
            # What reached a handler has details; what the transport itself refuses is never one of these.
            answer = judged(error)
            assert code in ALLOWED | {"ALREADY_EXISTS"}
            assert answer.error is not None
        except AssertionError as reason:
            if len(self.wrong) < 5:
                self.wrong.append(f"{rpc} {data.hex()}: {reason}")


async def _send_all(
    address: str, metadata: Metadata, inputs: Iterator[tuple[str, bytes]], seen: Seen
) -> None:
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

        async def work() -> None:
            for rpc, data in inputs:
                call = calls.setdefault(rpc, channel.unary_unary(path_of(rpc)))
                try:
                    await call(data, metadata=metadata, timeout=DEADLINE)
                    seen.codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    seen.note(rpc, data, error)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def send_all(target: Target, metadata: Metadata, inputs: Iterator[tuple[str, bytes]]) -> Seen:
    """Send every input, AT_ONCE of them at a time."""
    seen = Seen()
    asyncio.run(_send_all(target.service.target, metadata, inputs, seen))
    return seen


def _fuzz(target: Target, seed: str, number: int) -> Counter[str]:
    """Send that many inputs as a stranger, who may write nothing; what was answered."""
    stranger = target.world.client(target.world.user())
    began = time.monotonic()
    with unharmed(target):
        seen = send_all(target, stranger.metadata, Mutator(seed).inputs(number))
    print(f"seed {seed!r}: {dict(seen.codes)} in {time.monotonic() - began:.1f} s")
    assert not seen.wrong, f"seed {seed!r}:\n" + "\n".join(seen.wrong)
    assert seen.codes.total() == number
    return seen.codes


def test_a_few_thousand_mutated_messages_break_nothing(target: Target) -> None:
    _fuzz(target, f"warm {SEED}", 500)
    codes = _fuzz(target, SEED, 5_000)
    # The mutator would be worthless if all of its messages were refused for the same reason.
    assert all(codes[code] for code in ALLOWED), codes


@pytest.mark.long
@pytest.mark.parametrize("part", range(8))
def test_two_hundred_thousand_mutated_messages_break_nothing(target: Target, part: int) -> None:
    _fuzz(target, f"{SEED} {part}", 25_000)


def test_what_is_created_by_chance_is_well_formed(target: Target) -> None:
    world = target.world
    mutator, admin = Mutator(f"writer {SEED}"), world.user()
    world.sql.execute("UPDATE users SET role = 'admin' WHERE user_id = %s", (admin.user_id,))
    for small in range(1, 8):
        world.access.put_dataset(small, f"small {small}")
    inputs = ((rpc, data) for rpc, data in mutator.inputs(4_000) if rpc == "CreateJob")
    client = world.client(admin)
    with unharmed(target, rows_may_grow=True):
        seen = send_all(target, client.metadata, itertools.islice(inputs, 2_000))
        assert not seen.wrong, seen.wrong
        listed = [job for page in client.pages(view=2) for job in page.jobs if job.user_id == admin.user_id]
        assert listed
        for job in listed:
            assert client.get(job.job_id) == job
            assert len(world.events(job.job_id)) == 1
