"""Credentials made a Caller, for every method but health and reflection."""

from collections.abc import AsyncIterator
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
        if method.startswith((HEALTH, REFLECTION)):
            yield
            return
        call = calls.current()
        call.caller = await self._authenticator.caller(
            context.invocation_metadata() or (), context.auth_context, call
        )
        try:
            yield
        except (CallerUnknown, UserNotFound) as error:
            # A SOEID that we remembered may belong to nobody any more: look it up anew next time.
            self._authenticator.forget(error.metadata.get("user_soeid", ""))
            raise
