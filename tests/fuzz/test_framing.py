"""gRPC's own frames broken, in HTTP/2 that is right: prefixes that lie, compression that is none, bombs."""

import itertools
import random
import zlib

import pytest

from tests.fuzz.mutation import GOOD, Mutator
from tests.fuzz.target import MORE_MEMORY, Target, unharmed
from tests.fuzz.wire import Reply, Wire, bomb, grpc_message
from tests.support.judge import EVERY_METHOD, SERVICE, path_of

JOBS = f"/{SERVICE.full_name}/"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"
MEBIBYTE = 2**20
GET = GOOD["GetJob"][0].SerializeToString()
SOON = ("grpc-timeout", "500m")
"""A stream that ends without a whole message has no answer from gRPC but that its time is over."""
GZIP = ("grpc-encoding", "gzip")
NOT_FOUND, EXHAUSTED = "5", "8"


def sent(target: Target, body: bytes, *more: tuple[str, str], path: str = JOBS + "GetJob") -> Reply:
    """One call with this body, by somebody who is known."""
    client = target.world.client(target.world.user())
    credentials = [(key, str(value)) for key, value in client.metadata]
    with Wire(target.service.target) as wire:
        wire.hello()
        wire.call(path, body, *credentials, *more)
        return wire.reply()


def test_the_wire_client_is_answered_like_any_other(target: Target) -> None:
    assert sent(target, grpc_message(GET)).status == NOT_FOUND
    assert sent(target, grpc_message(b""), path=JOBS + "ListJobs").status == "0"
    compressed = grpc_message(zlib.compress(GET, wbits=31), flag=1)
    assert sent(target, compressed, GZIP).status == NOT_FOUND


# What is sent, and with which headers.
BROKEN: dict[str, tuple[bytes, tuple[tuple[str, str], ...]]] = {
    "nothing": (b"", ()),
    "half a prefix": (b"\0\0", ()),
    "a prefix alone": (grpc_message(b"", length=5), ()),
    "half a message": (grpc_message(GET[:9], length=len(GET)), ()),
    "a length of 4 GiB": (grpc_message(GET, length=2**32 - 1), ()),
    "a length of 4 MiB and one": (grpc_message(GET, length=4 * MEBIBYTE + 1), ()),
    "a length too short": (grpc_message(GET, length=3), ()),
    "compressed without a name of how": (grpc_message(zlib.compress(GET, wbits=31), flag=1), ()),
    "compressed as identity": (grpc_message(GET, flag=1), (("grpc-encoding", "identity"),)),
    "a flag that nobody knows": (grpc_message(GET, flag=7), ()),
    "the flag 255": (grpc_message(GET, flag=255), (GZIP,)),
    "gzip that is none": (grpc_message(b"rubbish" * 9, flag=1), (GZIP,)),
    "gzip cut off": (grpc_message(zlib.compress(GET * 99, wbits=31)[:-9], flag=1), (GZIP,)),
    "gzip of nothing": (grpc_message(b"", flag=1), (GZIP,)),
    "a compression that nobody has": (grpc_message(GET, flag=1), (("grpc-encoding", "zstd"),)),
    "a compression with a strange name": (grpc_message(GET, flag=1), (("grpc-encoding", "x" * 2000),)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_frame_is_refused_by_the_transport(target: Target, name: str) -> None:
    body, headers = BROKEN[name]
    with unharmed(target):
        reply = sent(target, body, SOON, *headers)
    assert reply.ended in {"status", "reset", "goaway", "closed"}, reply
    # These are gRPC's own: no handler has seen the call, so no details either, and nothing of ours.
    assert reply.status not in {"0", NOT_FOUND}, reply
    assert "jobs_service" not in str(reply.headers)


@pytest.mark.parametrize("size", [4, 32, 60])
@pytest.mark.parametrize("path", [JOBS + "GetJob", JOBS + "CreateJob", HEALTH, REFLECTION])
def test_a_small_message_that_grows_beyond_4_mib_is_refused(target: Target, path: str, size: int) -> None:
    with unharmed(target):
        reply = sent(target, grpc_message(bomb(size * MEBIBYTE + 1), flag=1), GZIP, path=path)
    assert reply.status == EXHAUSTED, reply


def test_many_bombs_at_once_take_no_memory(target: Target) -> None:
    body = grpc_message(bomb(60 * MEBIBYTE), flag=1)
    before = target.most_memory()
    with unharmed(target):
        wires = [Wire(target.service.target, seconds=30) for _ in range(20)]
        for wire in wires:
            wire.hello()
            wire.call(JOBS + "GetJob", body, GZIP)
        replies = []
        for wire in wires:
            with wire:
                replies.append(wire.reply().ended)
    assert set(replies) == {"status"}
    assert target.most_memory() < before + MORE_MEMORY


def test_messages_that_no_one_finishes_hold_nothing_up(target: Target) -> None:
    with unharmed(target):
        wires = [Wire(target.service.target) for _ in range(50)]
        for wire in wires:
            wire.hello()
            wire.call(JOBS + "CreateJob", grpc_message(b"\x0a" * 1000, length=4 * MEBIBYTE), end=False)
        target.answers(target.world.client(target.world.user()))
        for wire in wires:
            wire.socket.close()


def _damaged(dice: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(dice.choice([1, 1, 2, 4])):
        damaged[dice.randrange(min(len(damaged), dice.choice([5, 5000])))] = dice.randrange(256)
    return bytes(damaged)


def _framing(target: Target, seed: str, number: int) -> None:
    dice, mutator = random.Random(seed), Mutator(seed)
    client = target.world.client(target.world.user())
    credentials = [(key, str(value)) for key, value in client.metadata]
    inputs = mutator.inputs(number)
    with unharmed(target):
        # Twenty at a time: some are answered by nothing but the end of their time.
        while some := list(itertools.islice(inputs, 20)):
            wires: list[tuple[Wire, bytes]] = []
            for rpc, data in some:
                compressed = dice.random() < 0.3
                content = zlib.compress(data, wbits=31) if compressed else data
                body = _damaged(dice, grpc_message(content, flag=int(compressed)))
                wires.append((Wire(target.service.target), body))
                wires[-1][0].hello()
                wires[-1][0].call(path_of(rpc), body, SOON, *credentials, *([GZIP] if compressed else []))
            for wire, body in wires:
                with wire:
                    assert wire.reply().ended != "silence", f"seed {seed!r}: {body.hex()}"


def test_a_hundred_damaged_frames_are_all_answered(target: Target) -> None:
    assert set(GOOD) == set(EVERY_METHOD)
    _framing(target, "frames", 100)


@pytest.mark.long
def test_many_more_damaged_frames_are_all_answered(target: Target) -> None:
    _framing(target, "many frames", 1_500)
