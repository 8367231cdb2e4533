"""Credentials made a Caller, for every method but health and reflection."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.model.errors import CallerUnknown, UserNotFound
from jobs_service.transport import call as calls
from jobs_service.transport.auth import Authenticator
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, CallInterceptor, Context


class Authentication(CallInterceptor):
    """Lets nobody pass who is not known; servicers find the Caller in the call."""

    def __init__(self, authenticator: Authenticator) -> None:
        super().__init__()
        self._authenticator = authenticator

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Authenticate before the request is looked at."""
        if not method.startswith((HEALTH, REFLECTION)):
            await self._authenticate(context)
        yield

    async def _authenticate(self, context: Context) -> None:
        call = calls.current()
        call.caller = await self._authenticator.caller(
            context.invocation_metadata() or (), context.auth_context, call
        )

    def _coroutine(
        self, method: str, behaviour: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            async with self.around(method, request, context):
                try:
                    return await behaviour(request, context)
                except (CallerUnknown, UserNotFound) as error:
                    # Refused, so nothing was done. Of a user who was deleted and added again we may remember
                    # the id of the one before: of whoever has the SOEID now it may be no refusal.
                    soeid = error.metadata.get("user_soeid")
                    if soeid is None or not await self._authenticator.looked_up_anew(soeid, calls.current()):
                        raise
                await self._authenticate(context)
                return await behaviour(request, context)

        return call
