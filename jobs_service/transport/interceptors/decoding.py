"""Messages that can't be decoded, answered like any other bad request."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from google.protobuf.message import DecodeError

from jobs_service.model.errors import InvalidRequest, Violation
from jobs_service.transport.interceptors.base import CallInterceptor, Context, Handler


class _Undecodable:
    """Stands for a request until the call has passed authentication."""


class Decoding(CallInterceptor):
    """Wraps the deserialisers: gRPC itself would answer UNKNOWN with the exception's text."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Wrap the deserialiser too."""
        wrapped: Any = super().wrap(method, handler)
        if wrapped.request_deserializer is not None:
            wrapped = wrapped._replace(request_deserializer=_tolerant(wrapped.request_deserializer))
        if wrapped.request_streaming:
            wrapped = wrapped._replace(stream_stream=_checking_each(wrapped.stream_stream))
        return cast(Handler, wrapped)

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Refuse what did not decode."""
        _require_decoded(request)
        yield


def _require_decoded(request: object) -> None:
    if isinstance(request, _Undecodable):
        raise InvalidRequest([Violation("request", "is not a message of this method's type")])


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Undecodable()

    return decode


def _checking_each(behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            _require_decoded(request)
            yield request

    async def call(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for response in behaviour(decoded(requests), context):
            yield response

    return call
