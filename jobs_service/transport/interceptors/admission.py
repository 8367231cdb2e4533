"""How much the service takes on at once. What is more is refused before it costs anything."""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc

from jobs_service.model.errors import CredentialsMissing, JobsError, Overloaded
from jobs_service.transport import call as calls
from jobs_service.transport.auth import AUTHORIZATION
from jobs_service.transport.interceptors.answers import UntakenAnswers
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, Context, Handler, Interceptor

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Refuse = Callable[[JobsError, Context], Awaitable[Any]]

_SILENT_SECONDS = 0.5
"""Who has sent no message after this long loses its place to a newcomer, if there is no other.

Longer than an honest message is on its way; or those who come at once would take each other's place.
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """calls: in progress. request_bytes: of their messages as sent. answer_bytes: not yet taken by clients.

    receive_seconds: how long a client may take to send its message.
    """

    calls: int = 4_000
    request_bytes: int = 32 * 1024 * 1024
    answer_bytes: int = 256 * 1024 * 1024
    receive_seconds: float = 10.0


@dataclass(slots=True, eq=False)
class _Admitted:
    """since: when it came. answer_of: connection and caller. cut_off: why its message is not waited for."""

    since: float
    request_bytes: int = 0
    answer_bytes: int = 0
    answer_of: tuple[str, ...] = ()
    cut_off: Overloaded | None = None


@dataclass(frozen=True, slots=True)
class _Method:
    """A method's handlers: that which serves, and those that refuse unread."""

    served: Handler
    full: Handler
    anonymous: Handler


class Admission(grpc.aio.ServerInterceptor):
    """Counts every call from its headers to the last byte of its answer, health and reflection apart.

    Without credentials a call is refused unread: its message is never received. Over `calls` the same,
    unless an older one is still without its message: that one is refused then. Over `request_bytes` it is
    received, and not decoded: what is decoded takes many times as much. A call whose message does not
    come is refused in the end. A call whose answer is not taken keeps its place, with its bytes: gRPC gives
    no way to take an answer back, so the deadline ends it, or the connection. A connection or a
    caller that takes no answers is refused more long before all are.

    outside: the interceptors that refused calls pass too, from the outside in. certificates: whether a
    connection's certificate may be credentials enough. waiting: how many of the calls wait for something to
    happen; they have a limit of their own and take nobody's place. followed: methods whose calls are to know
    (Call.if_undelivered) whether their answer went out.
    """

    def __init__(
        self,
        bounds: Bounds,
        untaken: UntakenAnswers,
        outside: Sequence[Interceptor],
        *,
        certificates: bool,
        waiting: Callable[[], int] = lambda: 0,
        followed: Collection[str] = (),
    ) -> None:
        self._bounds = bounds
        self._waiting = waiting
        self._followed = frozenset(followed)
        self._untaken = untaken
        self._outside = tuple(outside)
        self._certificates = certificates
        self._admitted: dict[asyncio.Task[Any], _Admitted] = {}
        # Of the admitted those without their message, in order of arrival.
        self._silent: OrderedDict[asyncio.Task[Any], _Admitted] = OrderedDict()
        self._request_bytes = 0
        self._methods: dict[str, _Method] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Admit the call or answer with a handler that refuses it. Runs in the call's own task."""
        name = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or name.startswith((HEALTH, REFLECTION)):
            return handler
        method = self._methods.get(name)
        if method is None:
            # Known methods alone come here: what clients invent must not fill this table.
            method = self._methods[name] = self._method(name, handler)
        if not self._certificates and _is_anonymous(handler_call_details):
            return method.anonymous
        if self._untaken.refusal() or (self._is_full() and not self._make_room()):
            return method.full
        self._enter(streaming=handler.unary_unary is None)
        return method.served

    def _enter(self, *, streaming: bool) -> None:
        task = _current_task()
        call = self._admitted[task] = _Admitted(time.monotonic())
        # What streams is long on purpose: it is counted, and not cut off.
        if not streaming:
            self._silent[task] = call
        task.add_done_callback(self._leave)

    def _leave(self, task: "asyncio.Task[Any]") -> None:
        self._silent.pop(task, None)
        call = self._admitted.pop(task, None)
        if call is not None:
            self._request_bytes -= call.request_bytes
            self._untaken.remove(call.answer_of, call.answer_bytes)

    async def watch(self) -> None:
        """Cut off slow senders, until cancelled."""
        limit = self._bounds.receive_seconds
        error = functools.partial(Overloaded, limit=f"{limit:g}", resource="seconds of receiving")
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            while self._cut_off_silent(limit, error()):
                pass

    def _make_room(self) -> bool:
        return self._cut_off_silent(_SILENT_SECONDS, self._too_many())

    def _cut_off_silent(self, seconds: float, error: Overloaded) -> bool:
        """Refuse the oldest call whose message has not come for so long; whether there was one."""
        task, call = next(iter(self._silent.items()), (None, None))
        if task is None or call is None or call.since > time.monotonic() - seconds:
            return False
        # Its place is free at once: to send its status can take as long as its client likes.
        del self._silent[task], self._admitted[task]
        call.cut_off = error
        task.cancel()
        return True

    def _is_full(self) -> bool:
        return len(self._admitted) - self._waiting() >= self._bounds.calls

    def _too_many(self) -> Overloaded:
        return Overloaded(limit=self._bounds.calls, resource="calls")

    def _method(self, name: str, handler: Handler) -> _Method:
        refuse = self._refusal(name)
        return _Method(
            served=self._measure(handler, refuse, followed=name in self._followed),
            full=_unread(refuse, lambda: self._untaken.refusal() or self._too_many()),
            anonymous=_unread(refuse, CredentialsMissing),
        )

    def _refusal(self, name: str) -> Refuse:
        """Return what raises an error where it is logged and counted."""

        async def refuse(error: JobsError, context: Context) -> Any:
            raise error

        handler: Handler = grpc.unary_unary_rpc_method_handler(refuse)
        wrapped = functools.reduce(
            lambda inner, interceptor: interceptor.wrap(name, inner), reversed(self._outside), handler
        )
        return cast(Refuse, wrapped.unary_unary)

    def _measure(self, handler: Handler, refuse: Refuse, *, followed: bool) -> Handler:
        """Receive the message here. gRPC would wait for it without any status when the call is cut off."""
        if handler.unary_unary is None:
            return handler
        # The stubs know only the blocking server.
        behaviour = cast(Behaviour, handler.unary_unary)
        deserialize = handler.request_deserializer or bytes

        async def call(_: object, context: Context) -> Any:
            admitted = self._admitted[_current_task()]
            try:
                # Not by the iterator: one that is not read to its end costs the loop a task to close it.
                data = await context.read()
            except asyncio.CancelledError:
                if admitted.cut_off is None or _current_task().uncancel():
                    raise
                return await refuse(admitted.cut_off, context)
            error = self._received(admitted, data, context)
            if error is not None:
                return await refuse(error, context)
            # Without a message it is a bad request like others, of those who may call.
            return await behaviour(deserialize(data) if isinstance(data, bytes) else None, context)

        # Streaming means to a server that it receives the message itself.
        encode = self._count_answer(handler.response_serializer or bytes)
        measured: Handler = (
            grpc.stream_stream_rpc_method_handler(_written(call), response_serializer=encode)
            if followed
            else grpc.stream_unary_rpc_method_handler(call, response_serializer=encode)
        )
        return measured

    def _received(self, call: _Admitted, data: object, context: Context) -> Overloaded | None:
        """Count the message; returns why it is not even decoded."""
        self._silent.pop(_current_task(), None)
        peer = context.peer()
        call.answer_of = (peer,)
        size = len(data) if isinstance(data, bytes) else 0
        if self._request_bytes + size > self._bounds.request_bytes:
            return Overloaded(limit=self._bounds.request_bytes, resource="bytes of requests")
        call.request_bytes = size
        self._request_bytes += size
        return self._untaken.refusal_of(peer)

    def _count_answer(self, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def count(response: Any) -> bytes:
            data = encode(response)
            call = self._admitted[_current_task()]
            caller = calls.current().caller
            if caller is not None:
                call.answer_of = (*call.answer_of, caller.soeid)
            call.answer_bytes = len(data)
            self._untaken.add(call.answer_of, call.answer_bytes)
            return data

        return count


def _written(behaviour: Behaviour) -> Callable[[Any, Context], Awaitable[None]]:
    """Write the answer here: of one that gRPC writes nobody is told that it did not go out."""

    async def call(request: Any, context: Context) -> None:
        try:
            await context.write(await behaviour(request, context))
        except BaseException:
            calls.undelivered()
            raise

    return call


def _unread(refuse: Refuse, error: Callable[[], JobsError]) -> Handler:
    """A handler that does not receive the message: that is what streaming means to a server."""

    async def call(_: object, context: Context) -> Any:
        return await refuse(error(), context)

    handler: Handler = grpc.stream_unary_rpc_method_handler(call)
    return handler


def _is_anonymous(details: grpc.HandlerCallDetails) -> bool:
    return all(key != AUTHORIZATION for key, _ in details.invocation_metadata or ())


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - every call runs in a task
    return task
