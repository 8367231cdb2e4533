"""Streams that would go on for ever, ended when the server drains."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.model.errors import ShuttingDown
from jobs_service.transport.interceptors.base import CallInterceptor, Context, Handler


class Streams(CallInterceptor):
    """Knows the streams in progress. Ended by us they get SHUTTING_DOWN, so that clients come again.

    Without this a health watch would hold the drain up until its time is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Leave unary calls as they are: they end by themselves."""
        return super().wrap(method, handler) if handler.response_streaming else handler

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Note the stream for as long as it lasts."""
        if self._ending:
            raise ShuttingDown
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every call runs in a task
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ending or context.cancelled():
                raise
            task.uncancel()
            raise ShuttingDown from None
        finally:
            self._tasks.discard(task)

    def end_all(self) -> None:
        """End every stream in progress, and refuse new ones."""
        self._ending = True
        for task in self._tasks:
            task.cancel()
