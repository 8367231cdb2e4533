"""When the caller's time is up, as a moment that the layers below can compare with."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.model.errors import DeadlineExceeded
from jobs_service.transport import call as calls
from jobs_service.transport.interceptors.base import CallInterceptor, Context


class Deadlines(CallInterceptor):
    """Notes each call's deadline; one that has passed already ends the call here."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Note the deadline before anything else is done."""
        left = context.time_remaining()
        if left is not None:
            if left <= 0:
                raise DeadlineExceeded
            calls.current().deadline = time.monotonic() + left
        yield
