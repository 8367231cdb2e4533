"""An interceptor as one async context manager around each call, unary or stream."""

import inspect
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    # Generic in the type stubs alone.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext

# Methods that need no credentials and are asked all the time.
HEALTH = "/grpc.health."
REFLECTION = "/grpc.reflection."


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers: once per method, not once per call."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped; an unknown method has none."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._wrapped[method] = self.wrap(method, handler)
        return self._wrapped[method]

    @abstractmethod
    def wrap(self, method: str, handler: Handler) -> Handler:
        """Return what is called instead of the handler."""


class CallInterceptor(Interceptor):
    """Runs `around` around every call."""

    @abstractmethod
    def around(self, method: str, request: Any, context: Context) -> AbstractAsyncContextManager[None]:
        """Return what surrounds a call of this method. request is an iterator for client streams."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Return the handler with `around` around its behaviour."""
        asked, answered = (
            "stream" if streaming else "unary"
            for streaming in (handler.request_streaming, handler.response_streaming)
        )
        kind = f"{asked}_{answered}"
        behaviour = getattr(handler, kind)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            self._generator(method, behaviour)
            if inspect.isasyncgenfunction(behaviour)
            else self._coroutine(method, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _coroutine(
        self, method: str, behaviour: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            async with self.around(method, request, context):
                return await behaviour(request, context)

        return call

    def _generator(
        self, method: str, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self.around(method, request, context):
                async for response in behaviour(request, context):
                    yield response

        return call
