"""What strangers may send and hold: health and reflection ask for no credentials, and pass no admission."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from jobs_service.model.errors import DeadlineExceeded, InvalidRequest, Overloaded, Violation
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, Context, Handler, Interceptor

_TOO_LARGE = object()
"""Stands for a message that was not decoded."""


@dataclass(frozen=True, slots=True)
class Limits:
    """request_bytes: of one message. streams: at once, in all and of one connection; resource: their name.

    receive_seconds: how long a client may take to send the only message of a call.
    """

    resource: str
    request_bytes: int
    streams: int
    streams_of_one: int = 20
    receive_seconds: float = 10.0


LIMITS = {
    HEALTH: Limits("health watches", request_bytes=1024, streams=1000),
    # An answer that is not taken may hold every descriptor that there is.
    REFLECTION: Limits("reflection streams", request_bytes=16 * 1024, streams=100),
}


class _Places:
    """The streams in progress, by connection. One keeps its place until gRPC has done with it too."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken = 0
        self._of_one: Counter[str] = Counter()

    def take(self, peer: str) -> None:
        """Take a place for the running call. Raises Overloaded."""
        if self._of_one.get(peer, 0) >= self._limits.streams_of_one:
            resource = f"{self._limits.resource} on one connection"
            raise Overloaded(limit=self._limits.streams_of_one, resource=resource)
        if self._taken >= self._limits.streams:
            raise Overloaded(limit=self._limits.streams, resource=self._limits.resource)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every call runs in a task
        self._taken += 1
        self._of_one[peer] += 1
        task.add_done_callback(lambda _: self._leave(peer))

    def _leave(self, peer: str) -> None:
        self._taken -= 1
        self._of_one[peer] -= 1
        if not self._of_one[peer]:
            del self._of_one[peer]


class OpenToAll(Interceptor):
    """Bounds each message of health and reflection, and their streams. What answers once is never refused.

    All become client streams to gRPC, which receives a message only when it is asked for, and keeps that
    of a unary call for as long as the call lasts. All write their answers by themselves, so that the
    interceptors outside see it fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places = {prefix: _Places(limits) for prefix, limits in LIMITS.items()}

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Wrap what is open to all, and leave the rest."""
        prefix = next((prefix for prefix in LIMITS if method.startswith(prefix)), None)
        if prefix is None:
            return handler
        limits, places = LIMITS[prefix], self._places[prefix]
        any_handler: Any = handler
        if handler.request_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, _each(any_handler.stream_stream, limits)
        elif handler.response_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, _only(any_handler.unary_stream, limits)
        else:
            make, behaviour = grpc.stream_unary_rpc_method_handler, _only(any_handler.unary_unary, limits)
        wrapped: Handler = make(
            _placed(behaviour, places) if handler.response_streaming else behaviour,
            request_deserializer=_decode_if_small(any_handler.request_deserializer, limits.request_bytes),
            response_serializer=handler.response_serializer,
        )
        return wrapped


def _placed(behaviour: Any, places: _Places) -> Any:
    async def call(requests: AsyncIterator[Any], context: Context) -> None:
        places.take(context.peer())
        await behaviour(requests, context)

    return call


def _only(behaviour: Any, limits: Limits) -> Any:
    """Receive the one message by ourselves."""

    async def call(requests: AsyncIterator[Any], context: Context) -> Any:
        try:
            async with asyncio.timeout(limits.receive_seconds):
                request = await anext(requests)
        except StopAsyncIteration:
            raise InvalidRequest([Violation("request", "is missing")]) from None
        except TimeoutError:
            raise DeadlineExceeded from None
        return await behaviour(_small(request, limits), context)

    return call


def _each(behaviour: Any, limits: Limits) -> Any:
    async def small(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield _small(request, limits)

    async def call(requests: AsyncIterator[Any], context: Context) -> None:
        async with aclosing(behaviour(small(requests), context)) as responses:
            async for response in responses:
                await context.write(response)

    return call


def _small(request: Any, limits: Limits) -> Any:
    if request is _TOO_LARGE:
        most = limits.request_bytes
        raise InvalidRequest([Violation("request", f"has more than {most} bytes", limit=most)])
    return request


def _decode_if_small(decode: Callable[[bytes], Any], most: int) -> Callable[[bytes], Any]:
    return lambda data: decode(data) if len(data) <= most else _TOO_LARGE
