"""How much the service takes on at once. What is more is refused before it costs anything."""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc

from jobs_service.model.errors import Overloaded
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, Context, Handler, Interceptor

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_TOO_LARGE = object()
"""Stands for a request that was not decoded, because too many bytes are in progress."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """calls: in progress. request_bytes: of their messages as sent. answer_bytes: not yet taken by clients.

    receive_seconds: how long a client may take to send its message.
    """

    calls: int = 4_000
    request_bytes: int = 32 * 1024 * 1024
    answer_bytes: int = 256 * 1024 * 1024
    receive_seconds: float = 10.0

    @property
    def answer_bytes_of_one(self) -> int:
        """Return how many of the answer bytes may wait for one connection."""
        return self.answer_bytes // 16


@dataclass(slots=True, eq=False)
class _Admitted:
    """since: when it came. received: its message is there. peer: the connection, once that is known."""

    since: float
    received: bool = False
    peer: str = ""
    request_bytes: int = 0
    answer_bytes: int = 0


class Admission(grpc.aio.ServerInterceptor):
    """Counts every call from its headers to the last byte of its answer, health and reflection apart.

    Over `calls` a call is refused unread: its message is never received. Over `request_bytes` it is
    received, and not decoded: what is decoded takes many times as much. A call whose message does not
    come loses its place. A call whose answer is not taken keeps it, with its bytes: gRPC gives no way
    to take an answer back, so the deadline ends it, or the connection. A connection that takes no answers
    is refused more long before all are.

    outside: the interceptors that refused calls pass too, from the outside in.
    """

    def __init__(self, bounds: Bounds, outside: Sequence[Interceptor]) -> None:
        self._bounds = bounds
        self._outside = tuple(outside)
        self._admitted: dict[asyncio.Task[Any], _Admitted] = {}
        self._request_bytes = self._answer_bytes = 0
        # By connection, of those that have not taken all.
        self._untaken: Counter[str] = Counter()
        self._measured: dict[str, Handler] = {}
        self._refusing: dict[str, Handler] = {}

    @property
    def in_progress(self) -> int:
        """Return how many calls were admitted and have not ended."""
        return len(self._admitted)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Admit the call or answer with a handler that refuses it. Runs in the call's own task."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith((HEALTH, REFLECTION)):
            return handler
        if method not in self._measured:
            # Known methods alone come here: what clients invent must not fill these tables.
            self._refusing[method] = self._refusal(method)
            self._measured[method] = self._measure(method, handler)
        if self._is_full():
            return self._refusing[method]
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every call runs in a task
        # What streams is long on purpose: it is counted, and not cut off.
        self._admitted[task] = _Admitted(time.monotonic(), received=handler.unary_unary is None)
        task.add_done_callback(self._leave)
        return self._measured[method]

    async def watch(self) -> None:
        """Cut off slow senders, until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._bounds.receive_seconds / 4))
            self._cut_off_slow()

    def _cut_off_slow(self) -> None:
        latest = time.monotonic() - self._bounds.receive_seconds
        slow = [task for task, call in self._admitted.items() if not call.received and call.since < latest]
        for task in slow:
            task.cancel()

    def _is_full(self) -> bool:
        return len(self._admitted) >= self._bounds.calls or self._answer_bytes >= self._bounds.answer_bytes

    def _takes_too_little(self, peer: str) -> bool:
        return self._untaken.get(peer, 0) > self._bounds.answer_bytes_of_one

    def _leave(self, task: "asyncio.Task[Any]") -> None:
        call = self._admitted.pop(task)
        self._request_bytes -= call.request_bytes
        self._answer_bytes -= call.answer_bytes
        if call.answer_bytes:
            self._untaken[call.peer] -= call.answer_bytes
            if not self._untaken[call.peer]:
                del self._untaken[call.peer]

    def _current(self) -> _Admitted:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every call runs in a task
        return self._admitted[task]

    def _refusal(self, method: str) -> Handler:
        """A handler that does not receive the message: that is what streaming means to a server."""

        async def refuse(request: Any, context: Context) -> Any:
            if request is _TOO_LARGE:
                raise Overloaded(limit=self._bounds.request_bytes, resource="bytes of requests")
            if self._takes_too_little(context.peer()):
                raise Overloaded(limit=self._bounds.answer_bytes_of_one, resource="bytes of answers")
            if self._answer_bytes >= self._bounds.answer_bytes:
                raise Overloaded(limit=self._bounds.answer_bytes, resource="bytes of answers")
            raise Overloaded(limit=self._bounds.calls, resource="calls")

        handler: Handler = grpc.stream_unary_rpc_method_handler(refuse)
        return functools.reduce(
            lambda inner, interceptor: interceptor.wrap(method, inner), reversed(self._outside), handler
        )

    def _measure(self, method: str, handler: Handler) -> Handler:
        if handler.unary_unary is None:
            return handler
        refuse: Any = self._refusing[method].stream_unary
        # The stubs know only the blocking server.
        behaviour = cast(Behaviour, handler.unary_unary)

        async def call(request: Any, context: Context) -> Any:
            peer = self._current().peer = context.peer()
            if request is _TOO_LARGE or self._takes_too_little(peer):
                return await refuse(request, context)
            return await behaviour(request, context)

        measured: Handler = grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=self._decode_if_room(handler.request_deserializer or bytes),
            response_serializer=self._count_answer(handler.response_serializer or bytes),
        )
        return measured

    def _decode_if_room(self, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def decode_if_room(data: bytes) -> Any:
            call, size = self._current(), len(data)
            call.received = True
            if self._request_bytes + size > self._bounds.request_bytes:
                return _TOO_LARGE
            call.request_bytes = size
            self._request_bytes += size
            return decode(data)

        return decode_if_room

    def _count_answer(self, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def count(response: Any) -> bytes:
            data = encode(response)
            call = self._current()
            call.answer_bytes = len(data)
            self._answer_bytes += len(data)
            self._untaken[call.peer] += len(data)
            return data

        return count
