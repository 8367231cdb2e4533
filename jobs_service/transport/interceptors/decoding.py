"""Messages decoded, and those that can't be answered like any other bad request."""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.message import DecodeError

from jobs_service.model.errors import InvalidRequest, Violation
from jobs_service.transport.interceptors.base import Context, Handler, Interceptor


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A message as it was sent."""

    data: bytes


class Decoding(Interceptor):
    """Innermost: to decode takes up to a tenth of a second, which only those get who may call at all.

    gRPC's own decoding would come first, and answer UNKNOWN with the exception's text.
    """

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Keep messages as they are until the behaviour is called."""
        asked, answered = (
            "stream" if streaming else "unary"
            for streaming in (handler.request_streaming, handler.response_streaming)
        )
        kind = f"{asked}_{answered}"
        decode = _decoder(handler.request_deserializer or bytes)
        behaviour = getattr(handler, kind)
        wrap = _generator if inspect.isasyncgenfunction(behaviour) else _coroutine
        wrapped: Any = handler
        wrapped = wrapped._replace(
            request_deserializer=_Encoded,
            **{kind: wrap(behaviour, _of_each(decode) if handler.request_streaming else decode)},
        )
        return cast(Handler, wrapped)


Decode = Callable[[object], Any]


def _decoder(deserialize: Callable[[bytes], Any]) -> Decode:
    def decode(request: object) -> Any:
        """None: the client ended its side of the call without a message."""
        try:
            if isinstance(request, _Encoded):
                # Not on a thread: protobuf holds the interpreter's lock all the while.
                return deserialize(request.data)
        except DecodeError:
            pass
        raise InvalidRequest([Violation("request", "is not a message of this method's type")])

    return decode


def _of_each(decode: Decode) -> Decode:
    async def decoded(requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield decode(request)

    return decoded


def _coroutine(behaviour: Any, decode: Decode) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        return await behaviour(decode(request), context)

    return call


def _generator(behaviour: Any, decode: Decode) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async for response in behaviour(decode(request), context):
            yield response

    return call
