"""Response headers, sent with the answer and never before it.

A client tries a call again only while it has seen no headers (gRFC A6): a refusal must come without.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from jobs_service.transport.interceptors.base import Context, Handler, Interceptor

Metadata = Any


class _Late:
    """A call's context that keeps its headers back. All else goes to the context itself."""

    __slots__ = ("_context", "_metadata")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._metadata: Metadata = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Keep the headers for send_late."""
        self._metadata = metadata

    async def send_late(self) -> None:
        """Send what was kept."""
        if self._metadata is not None:
            await self._context.send_initial_metadata(self._metadata)


class LateHeaders(Interceptor):
    """Keeps headers back until there is an answer. A stream's answers begin before it has ended: left."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Wrap what answers once."""
        if handler.response_streaming:
            return handler
        asked = "stream" if handler.request_streaming else "unary"
        make = getattr(grpc, f"{asked}_unary_rpc_method_handler")
        late: Handler = make(
            _late(getattr(handler, f"{asked}_unary")),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return late


def _late(behaviour: Any) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        late = _Late(context)
        response = await behaviour(request, late)
        await late.send_late()
        return response

    return call
