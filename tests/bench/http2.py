"""As much of HTTP/2 as a gRPC caller needs who sends small messages: frames made once, answers skimmed."""

import socket
import struct
from collections import deque

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4

_HEAD = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
_LARGEST_WINDOW = 2**31 - 1
_TOP_UP = 2**29
_FIRST_WINDOW = 65_535
_NO_ERROR = bytes(4)
MAX_FRAME = 16_384

Headers = list[tuple[str, str]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 255, kind, flags, stream) + payload


def message(data: bytes) -> bytes:
    """Return a gRPC message with its prefix."""
    return struct.pack(">BL", 0, len(data)) + data


def header_block(headers: Headers) -> bytes:
    """Return the headers without any compression, so that the block is good on every connection."""
    return b"".join(b"\x00" + _text(name.encode()) + _text(value.encode()) for name, value in headers)


def _text(data: bytes) -> bytes:
    length = len(data)
    if length < 127:
        return bytes([length]) + data
    rest, tail = length - 127, b""
    while rest >= 128:
        tail += bytes([rest % 128 + 128])
        rest //= 128
    return b"\x7f" + tail + bytes([rest]) + data


def field(block: bytes, name: bytes) -> bytes | None:
    """Return the value of a trailer that is short and sent as it is; None where it is not there."""
    at = block.find(name)
    if at < 0:
        return None
    at += len(name)
    return block[at + 1 : at + 1 + block[at]]


class BadAnswer(Exception):
    """The server did what a gRPC server does not do, or closed the connection."""


class Connection:
    """One connection. Messages of at most MAX_FRAME bytes; answers may have any size.

    The server is told not to index headers, so that a status can be found without a decoder.
    window: how many bytes of each answer, and of all answers, it may send before they are read.
    """

    def __init__(self, target: str, *, window: int = _LARGEST_WINDOW) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = -1
        self._window = _FIRST_WINDOW
        self._received = 0
        self._rest = b""
        self._out: list[bytes] = []
        self._held_back: deque[tuple[int, bytes]] = deque()
        settings = _SETTING.pack(_HEADER_TABLE_SIZE, 0) + _SETTING.pack(_INITIAL_WINDOW_SIZE, window)
        self._out += [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, settings),
        ]
        if window > _FIRST_WINDOW:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", window - _FIRST_WINDOW)))

    def call(self, block: bytes, body: bytes | None) -> int:
        """Begin a call with this header block and message; returns its stream. Sent by flush.

        None: the message never comes.
        """
        self._stream += 2
        stream = self._stream
        block_length = len(block)
        self._out.append(_HEAD.pack(block_length >> 8, block_length & 255, HEADERS, END_HEADERS, stream))
        self._out.append(block)
        if body is None:
            return stream
        if len(body) > self._window or self._held_back:
            self._held_back.append((stream, body))
        else:
            self._send_body(stream, body)
        return stream

    def _send_body(self, stream: int, body: bytes) -> None:
        length = len(body)
        self._window -= length
        self._out.append(_HEAD.pack(length >> 8, length & 255, DATA, END_STREAM, stream))
        self._out.append(body)

    def flush(self) -> None:
        """Send what has been begun."""
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> list[tuple[int, bytes]]:
        """Read what is there; returns stream and trailers of each call that has ended. Raises BadAnswer."""
        data = self.socket.recv(262_144)
        if not data:
            raise BadAnswer("the server closed the connection")
        if self._rest:
            data = self._rest + data
        ended: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            after = at + 9 + (high << 8 | low)
            if after > end:
                break
            if kind == DATA:
                self._received += after - at - 9
            elif kind == HEADERS:
                if flags & END_STREAM:
                    ended.append((stream, data[at + 9 : after]))
            else:
                self._control(kind, flags, stream, data[at + 9 : after])
            at = after
        self._rest = data[at:]
        if self._received > _TOP_UP:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self._received)))
            self._received = 0
        return ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._out.append(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">L", payload)[0]
            while self._held_back and len(self._held_back[0][1]) <= self._window:
                self._send_body(*self._held_back.popleft())
        elif kind in {GOAWAY, CONTINUATION}:
            raise BadAnswer(f"frame type {kind}: {payload!r}")
        elif kind == RST_STREAM and payload != _NO_ERROR:
            raise BadAnswer(f"stream {stream} was reset: {payload!r}")
        # With NO_ERROR it follows the trailers of a call that was refused unread; WINDOW_UPDATE of a
        # stream is for messages larger than ours.

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
