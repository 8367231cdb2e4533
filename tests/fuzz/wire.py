"""A client below gRPC: one TCP connection whose HTTP/2 frames a test makes by itself."""

import gzip
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
HeaderList = Sequence[tuple[str | bytes, str | bytes]]


def frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """A frame; length: what it claims, if not the truth."""
    claimed = len(payload) if length is None else length
    return struct.pack(">I", claimed)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(headers: HeaderList) -> bytes:
    """Headers as HPACK writes them without any table: no value is too odd for it."""
    parts = []
    for pair in headers:
        parts.append(b"\x00")
        for text in pair:
            data = text.encode() if isinstance(text, str) else text
            parts.append(_integer(len(data)) + data)
    return b"".join(parts)


def _integer(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    value, encoded = value - 127, bytearray([127])
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def grpc_message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed message; flag 1: compressed; length: what it claims, if not the truth."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def bomb(size: int) -> bytes:
    """A gzip stream that becomes this many bytes."""
    return gzip.compress(bytes(size), 9)


def call_headers(path: str, *more: tuple[str | bytes, str | bytes]) -> HeaderList:
    """What a gRPC call begins with, and more."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]


@dataclass
class Reply:
    """What came back. ended: how it stopped: status, reset, goaway, closed, or silence."""

    ended: str = "silence"
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""

    @property
    def status(self) -> str | None:
        """The grpc-status, None where none came."""
        return dict(self.headers).get("grpc-status")


class Wire:
    """A connection that says what it is told to."""

    def __init__(self, target: str, *, seconds: float = 10) -> None:
        host, _, port = target.rpartition(":")
        self._seconds = seconds
        self.socket = socket.create_connection((host, int(port)), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = hpack.Decoder()
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> bool:
        """Send; False where the peer has closed, or does not take any more."""
        try:
            self.socket.sendall(b"".join(parts))
        except OSError:
            return False
        return True

    def hello(self) -> None:
        """Preface and settings."""
        self.send(PREFACE, frame(SETTINGS))

    def call(self, path: str, body: bytes, *more: tuple[str | bytes, str | bytes], end: bool = True) -> bool:
        """Begin stream 1 with these headers and body."""
        head = frame(HEADERS, END_HEADERS, 1, literal(call_headers(path, *more)))
        pieces = [body[place : place + 16_000] for place in range(0, len(body), 16_000)] or [b""]
        frames = [frame(DATA, 0, 1, piece) for piece in pieces[:-1]]
        return self.send(head, *frames, frame(DATA, END_STREAM if end else 0, 1, pieces[-1]))

    def reply(self, stream: int = 1) -> Reply:
        """Read until the stream, or the connection, has ended, or the time is over."""
        reply, until = Reply(), time.monotonic() + self._seconds
        while time.monotonic() < until:
            got = self._frame(until)
            if isinstance(got, str):
                reply.ended = got
                return reply
            if self._take(*got, reply, stream):
                return reply
        return reply

    def _take(self, kind: int, flags: int, number: int, payload: bytes, reply: Reply, stream: int) -> bool:
        """Note a frame; whether it was the last that matters."""
        if kind == HEADERS:
            decoded = [(str(name), str(value)) for name, value in self._decoder.decode(payload)]
            if number == stream:
                reply.headers += decoded
        elif kind == DATA and number == stream:
            reply.data += payload
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK))
        elif kind == GOAWAY:
            reply.ended = "goaway"
            return True
        elif kind == RST_STREAM and number == stream:
            reply.ended = "reset"
            return True
        if kind in {HEADERS, DATA} and number == stream and flags & END_STREAM:
            reply.ended = "status"
            return True
        return False

    def _frame(self, until: float) -> tuple[int, int, int, bytes] | str:
        head = self._read(9, until)
        if isinstance(head, str):
            return head
        payload = self._read(int.from_bytes(head[:3], "big"), until)
        if isinstance(payload, str):
            return payload
        return head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload

    def _read(self, size: int, until: float) -> bytes | str:
        while len(self._buffer) < size:
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            try:
                piece = self.socket.recv(65_536)
            except TimeoutError:
                return "silence"
            except OSError:
                return "closed"
            if not piece:
                return "closed"
            self._buffer += piece
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken
