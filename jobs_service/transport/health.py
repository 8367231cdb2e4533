"""Readiness as grpc.health.v1 tells it: asked of the database again and again, and ended by the drain."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import OVERALL_HEALTH
from grpc_health.v1.health import aio as health_aio

LIVENESS = "liveness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = logging.getLogger(__name__)


class _Servicer(health_aio.HealthServicer):
    """grpcio's, and List, which that one knows but does not have."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[str, Any] = {}

    async def set(self, service: str, status: Any) -> None:
        """Set the answer for a service."""
        self._listed[service] = status
        await super().set(service, status)

    async def List(self, request: Any, context: Any) -> Any:
        """Answer the health of every service."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status) for name, status in self._listed.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined] # newer than its types


class Health:
    """Says SERVING for "" and the services while `is_ready` says so; liveness is always SERVING.

    is_ready: blocks for as long as the database takes; raises or returns False when not ready.
    """

    def __init__(
        self,
        services: Sequence[str],
        is_ready: Callable[[], bool],
        *,
        every: float = 1.0,
        patience: float = 5.0,
    ) -> None:
        self.servicer = _Servicer()
        self._names = (OVERALL_HEALTH, *services)
        self._is_ready = is_ready
        self._every = every
        self._patience = patience
        # A thread of its own: it must answer when all others are busy.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._said: bool | None = None
        self._draining = False

    @property
    def ready(self) -> bool:
        """What is said now. For any thread."""
        return self._said is True

    async def start(self) -> None:
        """Set the first answers, before the server listens."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self.run_once()

    async def run(self) -> None:
        """Ask for ever, until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            await self.run_once()

    async def run_once(self) -> None:
        """Ask the database once and say what it is."""
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._is_ready)
        try:
            # Shielded: the thread goes on anyway, and the next question waits for it.
            ready = await asyncio.wait_for(asyncio.shield(asked), self._patience)
        except Exception as error:
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
            ready = False
            if self._said is not False:
                _log.warning("not ready", extra={"fields": {"error": repr(error)}})
        await self._say(ready and not self._draining)

    async def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining = True
        await self._say(False)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _say(self, ready: bool) -> None:
        if ready != self._said:
            self._said = ready
            _log.info("ready" if ready else "not ready")
            for name in self._names:
                await self.servicer.set(name, _SERVING if ready else _NOT_SERVING)
