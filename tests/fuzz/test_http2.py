"""HTTP/2 broken and used up: rubbish on the socket, frames that lie, floods. Bounded in count and time."""

import random
from collections.abc import Callable

import pytest

from tests.fuzz.mutation import GOOD
from tests.fuzz.target import Target, unharmed
from tests.fuzz.wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Reply,
    Wire,
    call_headers,
    frame,
    grpc_message,
    literal,
)
from tests.support.judge import SERVICE

GET = f"/{SERVICE.full_name}/GetJob"
BODY = grpc_message(GOOD["GetJob"][0].SerializeToString())
CALL = literal(call_headers(GET, ("grpc-timeout", "2S")))
WHOLE = END_HEADERS | END_STREAM


def answered(target: Target, *parts: bytes, seconds: float = 10) -> Reply:
    """What comes back on stream 1 for these frames, after the preface and settings."""
    with Wire(target.service.target, seconds=seconds) as wire:
        wire.hello()
        wire.send(*parts)
        return wire.reply()


# Which frames, and whether the connection or the stream may still be answered with a status.
CONNECTION_ERRORS: dict[str, tuple[bytes, ...]] = {
    "a DATA frame on stream 0": (frame(DATA, 0, 0, b"x"),),
    "HEADERS on stream 0": (frame(HEADERS, WHOLE, 0, CALL),),
    "HEADERS on an even stream": (frame(HEADERS, WHOLE, 2, CALL),),
    "an index beyond the table": (frame(HEADERS, WHOLE, 1, b"\xff\xff\xff\x7f"),),
    "the index 0": (frame(HEADERS, WHOLE, 1, b"\x80"),),
    "a table size that is not allowed": (frame(HEADERS, WHOLE, 1, b"\x3f\xff\xff\xff\x7f" + CALL),),
    "a Huffman text that is none": (
        frame(HEADERS, WHOLE, 1, b"\x00\x84\xff\xff\xff\xff\x84\xff\xff\xff\xff"),
    ),
    "an integer without an end": (frame(HEADERS, WHOLE, 1, b"\x00\x7f" + b"\xff" * 50),),
    "a header cut off": (frame(HEADERS, WHOLE, 1, CALL[:-5]),),
    "a frame above the limit": (frame(DATA, 0, 1, b"", length=2**24 - 1),),
    "padding longer than the frame": (frame(HEADERS, WHOLE | 0x8, 1, b"\xff" + CALL[:20]),),
    "SETTINGS of a wrong length": (frame(SETTINGS, 0, 0, b"12345"),),
    "SETTINGS with a window of 4 GiB": (frame(SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff"),),
    "an acknowledgement with content": (frame(SETTINGS, ACK, 0, b"123456"),),
    "a PING of a wrong length": (frame(PING, 0, 0, b"1234567"),),
    "a WINDOW_UPDATE of a wrong length": (frame(WINDOW_UPDATE, 0, 0, b"123"),),
    "a RST_STREAM of a wrong length": (frame(RST_STREAM, 0, 1, b"123"),),
    "CONTINUATION without HEADERS": (frame(CONTINUATION, END_HEADERS, 1, CALL),),
    "another frame between HEADERS and CONTINUATION": (
        frame(HEADERS, 0, 1, CALL[:9]),
        frame(PING, 0, 0, bytes(8)),
    ),
    "a push by a client": (frame(PUSH, END_HEADERS, 1, b"\0\0\0\2" + CALL),),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_a_frame_that_breaks_the_protocol_harms_only_its_own_connection(target: Target, name: str) -> None:
    with unharmed(target):
        reply = answered(target, *CONNECTION_ERRORS[name], seconds=1)
    # Never an answer of the service; that the connection stays open, ignoring it, is gRPC's choice.
    assert reply.ended in {"goaway", "reset", "closed", "silence"} or reply.status not in {"0", None}


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\0" * 100,
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        PREFACE[:-1] + b"x",
    ],
)
def test_what_is_no_http2_is_no_connection(target: Target, first: bytes) -> None:
    with unharmed(target), Wire(target.service.target, seconds=1) as wire:
        wire.send(first)
        assert wire.reply().ended in {"goaway", "closed", "silence"}


def test_nobody_writes_a_line_of_its_own_into_the_log(target: Target) -> None:
    line = b'\n{"level":"ERROR","message":"forged","code":"INTERNAL"}\n\xff'
    log = target.service.log_file
    before = log.stat().st_size
    with unharmed(target):
        answered(target, frame(GOAWAY, 0, 0, bytes(8) + line), seconds=1)
        answered(
            target, frame(HEADERS, WHOLE, 1, literal(call_headers(GET, ("grpc-encoding", line)))), seconds=1
        )
        answered(
            target,
            frame(HEADERS, WHOLE, 1, literal(call_headers(GET, ("x-correlation-id", line)))),
            seconds=1,
        )
        answered(
            target, frame(HEADERS, WHOLE, 1, literal(call_headers("/a" + line.decode("latin-1")))), seconds=1
        )
    with log.open("rb") as file:
        file.seek(before)
        assert b"forged" not in file.read()


def _rubbish(dice: random.Random) -> bytes:
    """Frames of any kind with any content, or no frames at all."""
    if dice.random() < 0.3:
        return dice.randbytes(dice.choice([1, 20, 500]))
    pieces = []
    for _ in range(dice.randrange(1, 8)):
        kind = dice.choice([*range(11), 255])
        payload = dice.choice([CALL, BODY, CALL[:9], b"", dice.randbytes(dice.randrange(40))])
        stream = dice.choice([0, 1, 1, 1, 2, 3, 2**31 - 1, 2**32 - 1])
        length = dice.choice([None, None, None, 0, len(payload) + 1, 2**24 - 1])
        pieces.append(frame(kind, dice.choice([0, 1, 4, 5, 8, 0x20, 255]), stream, payload, length=length))
    damaged = bytearray(b"".join(pieces))
    if dice.random() < 0.5:
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def _throw(target: Target, seed: str, number: int) -> None:
    dice = random.Random(seed)
    with unharmed(target):
        for _ in range(number):
            with Wire(target.service.target) as wire:
                if dice.random() < 0.9:
                    wire.hello()
                wire.send(_rubbish(dice))


def test_hundreds_of_connections_of_rubbish_harm_nothing(target: Target) -> None:
    _throw(target, "rubbish", 300)


@pytest.mark.long
def test_thousands_of_connections_of_rubbish_harm_nothing(target: Target) -> None:
    _throw(target, "much rubbish", 4_000)


def _rapid_reset(number: int) -> bytes:
    return frame(HEADERS, WHOLE, number, CALL) + frame(RST_STREAM, 0, number, b"\0\0\0\x08")


FLOODS: dict[str, Callable[[int], bytes]] = {
    "streams reset at once": lambda n: _rapid_reset(2 * n + 1),
    "streams without a message": lambda n: frame(HEADERS, WHOLE, 2 * n + 1, CALL),
    "settings": lambda n: frame(SETTINGS, 0, 0, b"\x00\x04" + n.to_bytes(4, "big")),
    "pings": lambda n: frame(PING, 0, 0, n.to_bytes(8, "big")),
    "windows": lambda n: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"),
    "priorities": lambda n: frame(PRIORITY, 0, 2 * n + 1, b"\0\0\0\0\x10"),
    "empty data": lambda n: frame(DATA, 0, 1, b"") if n else frame(HEADERS, END_HEADERS, 1, CALL),
    "continuations": lambda n: frame(CONTINUATION, 0, 1, b"") if n else frame(HEADERS, 0, 1, CALL),
    "header pieces": lambda n: frame(CONTINUATION if n else HEADERS, 0, 1, literal([("x", "y" * 900)])),
    "goodbyes": lambda n: frame(GOAWAY, 0, 0, bytes(8)),
    "resets of nothing": lambda n: frame(RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08"),
    "unknown frames": lambda n: frame(99, 255, n, b"x" * 20),
}


@pytest.mark.parametrize("name", FLOODS)
def test_others_are_served_while_one_connection_floods(target: Target, name: str) -> None:
    other = target.world.client(target.world.user())
    with unharmed(target), Wire(target.service.target, seconds=2) as wire:
        wire.hello()
        wire.socket.settimeout(2)
        for start in range(0, 5_000, 500):
            # Where the service hangs up, or takes no more, the flood is over.
            if not wire.send(*(FLOODS[name](number) for number in range(start, start + 500))):
                break
            other.list(page_size=1)


def test_a_caller_who_never_reads_its_answers_keeps_nobody_waiting(target: Target) -> None:
    world = target.world
    user = world.user()
    client = world.client(user)
    credentials = [(key, str(value)) for key, value in client.metadata]
    head = literal(call_headers(f"/{SERVICE.full_name}/ListJobs", *credentials))
    with unharmed(target), Wire(target.service.target, seconds=2) as wire:
        # A window of nothing: the service may not send a byte of an answer.
        wire.send(PREFACE, frame(SETTINGS, 0, 0, b"\x00\x04\0\0\0\0"))
        wire.socket.settimeout(2)
        for number in range(500):
            stream = 2 * number + 1
            if not wire.send(
                frame(HEADERS, END_HEADERS, stream, head), frame(DATA, END_STREAM, stream, grpc_message(b""))
            ):
                break
        for _ in range(20):
            client.list(page_size=1)


def test_hundreds_of_idle_connections_keep_nobody_out(target: Target) -> None:
    with unharmed(target):
        wires = [Wire(target.service.target) for _ in range(400)]
        try:
            for wire in wires:
                wire.hello()
            fresh = target.world.client(target.world.user())
            for _ in range(20):
                fresh.list(page_size=1)
        finally:
            for wire in wires:
                wire.socket.close()


@pytest.mark.parametrize("size", [15_000, 17_000, 100_000, 2**20])
@pytest.mark.parametrize("name", ["authorization", "x-on-behalf-of", "x-correlation-id", "x-any-bin"])
def test_metadata_of_any_size_end_the_call_or_nothing(target: Target, name: str, size: int) -> None:
    head = literal(call_headers(GET, (name, "A" * size)))
    pieces = [head[place : place + 16_000] for place in range(0, len(head), 16_000)]
    frames = [frame(CONTINUATION if number else HEADERS, 0, 1, piece) for number, piece in enumerate(pieces)]
    with unharmed(target):
        end = [frame(CONTINUATION, END_HEADERS, 1), frame(DATA, END_STREAM, 1, BODY)]
        reply = answered(target, *frames, *end)
    assert reply.ended in {"status", "reset", "goaway", "closed"}
    assert reply.status in {"16", "8", None}, reply
