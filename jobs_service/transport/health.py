"""Readiness as grpc.health.v1 tells it: asked of the database again and again, and ended by the drain."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH

LIVENESS = "liveness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_log = logging.getLogger(__name__)


class _Servicer(health_pb2_grpc.HealthServicer):
    """Tells what was set last. Nothing is held while a watcher is written to: it may never take it.

    grpcio's own servicer holds a lock meanwhile, and has no List.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changed = asyncio.Event()

    def set(self, services: Iterable[str], status: Any) -> None:
        """Set the answer for these services, and wake who watches."""
        self._statuses.update(dict.fromkeys(services, status))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:
        """Answer the health of one service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> Any:
        """Answer the health of every service."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined] # newer than its types

    async def Watch(self, request: Any, context: Any) -> None:
        """Tell the health of one service, and each change. Of quick changes only the last may be told."""
        told = None
        while True:
            # Taken before the status: a change while this one is written is not missed.
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()


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
        self.servicer.set([LIVENESS], _SERVING)
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
        self._say(ready and not self._draining)

    def drain(self) -> None:
        """Say NOT_SERVING from now on. Waits for nobody."""
        self._draining = True
        self._say(False)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _say(self, ready: bool) -> None:
        if ready != self._said:
            self._said = ready
            _log.info("ready" if ready else "not ready")
            self.servicer.set(self._names, _SERVING if ready else _NOT_SERVING)
