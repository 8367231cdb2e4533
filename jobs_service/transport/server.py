"""The gRPC server: its options, its interceptors, its services, and how it ends."""

import asyncio
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobs.v1 import access_pb2, access_pb2_grpc, jobs_pb2, jobs_pb2_grpc, workers_pb2, workers_pb2_grpc
from jobs_service.transport.access_servicer import AccessServicer
from jobs_service.transport.auth import Authenticator
from jobs_service.transport.health import Health
from jobs_service.transport.interceptors.access_log import AccessLog
from jobs_service.transport.interceptors.admission import Admission, Bounds
from jobs_service.transport.interceptors.answers import CallerAnswers, UntakenAnswers
from jobs_service.transport.interceptors.authentication import Authentication
from jobs_service.transport.interceptors.deadlines import Deadlines
from jobs_service.transport.interceptors.decoding import Decoding
from jobs_service.transport.interceptors.errors import Errors
from jobs_service.transport.interceptors.late_headers import LateHeaders
from jobs_service.transport.interceptors.open_to_all import OpenToAll
from jobs_service.transport.interceptors.streams import Streams
from jobs_service.transport.jobs_servicer import JobsServicer
from jobs_service.transport.operations import Operations
from jobs_service.transport.reflection import add_reflection
from jobs_service.transport.tls import Tls
from jobs_service.transport.worker_operations import WorkerOperations
from jobs_service.transport.worker_requests import LONGEST_WAIT
from jobs_service.transport.workers_servicer import WorkersServicer

JOBS_SERVICE: str = jobs_pb2.DESCRIPTOR.services_by_name["JobsService"].full_name
WORKERS_SERVICE: str = workers_pb2.DESCRIPTOR.services_by_name["WorkersService"].full_name
ACCESS_SERVICE: str = access_pb2.DESCRIPTOR.services_by_name["AccessService"].full_name
SERVICES = (JOBS_SERVICE, WORKERS_SERVICE, ACCESS_SERVICE)
HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024


class PortTaken(Exception):
    """An address can't be listened on."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Times in seconds, see config. Targets are HOST:PORT; mtls_target: where there is a second listener.

    streams: calls at once on one connection.
    """

    target: str
    mtls_target: str | None
    reflection: bool
    keepalive: float
    max_connection_age: float
    drain_delay: float
    drain: float
    streams: int
    bounds: Bounds

    def options(self) -> list[tuple[str, int]]:
        """Return the channel options. gRPC ignores a name that it does not know without a word."""
        return [
            # Or a second service would share the port silently, and get half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            # Clients keep the rest back by themselves: that costs the server nothing.
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may ping as often as this, with no call in progress either.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # Who connects and does not shake hands is not waited for as long as the core would, 2 minutes.
            ("grpc.server_handshake_timeout_ms", 20_000),
            ("grpc.max_connection_age_ms", int(self.max_connection_age * 1000)),
            # A call that waits is not to be cut off by it.
            ("grpc.max_connection_age_grace_ms", int((self.drain + LONGEST_WAIT.total_seconds()) * 1000)),
        ]


class Server:
    """Serves the API, health and reflection, on one port or two."""

    def __init__(
        self,
        settings: ServerSettings,
        tls: Tls | None,
        operations: Operations,
        worker_operations: WorkerOperations,
        authenticator: Authenticator,
        health: Health,
        access_log: AccessLog | None = None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._operations = operations
        self._worker_operations = worker_operations
        self._health = health
        self._streams = Streams()
        seams = [LateHeaders(), access_log or AccessLog(), Errors()]
        untaken = UntakenAnswers(settings.bounds.answer_bytes)
        with_certificates = settings.mtls_target is not None
        self._admission = Admission(
            settings.bounds,
            untaken,
            outside=seams,
            certificates=with_certificates,
            waiting=lambda: worker_operations.room.count,
            followed=[f"/{WORKERS_SERVICE}/ClaimJobs"],
        )
        self._watching: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[
                self._admission,
                *seams,
                Deadlines(),
                Authentication(authenticator),
                CallerAnswers(untaken),
                self._streams,
                OpenToAll(),
                Decoding(),
            ],
            options=settings.options(),
        )
        servicer = JobsServicer(operations, authenticator)
        jobs_pb2_grpc.add_JobsServiceServicer_to_server(servicer, self._server)
        access_pb2_grpc.add_AccessServiceServicer_to_server(AccessServicer(operations), self._server)
        workers_pb2_grpc.add_WorkersServiceServicer_to_server(
            WorkersServicer(worker_operations), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)
        if settings.reflection:
            add_reflection(self._server, [*SERVICES, HEALTH_SERVICE])

    async def start(self) -> tuple[int, int | None]:
        """Listen; returns the port, and that of mTLS where there is one. Raises PortTaken."""
        port, mtls_port = self._listen(self._settings.target), None
        if self._settings.mtls_target is not None:
            mtls_port = self._listen(self._settings.mtls_target, mtls=True)
        await self._health.start()
        self._worker_operations.start()
        await self._server.start()
        self._watching = asyncio.create_task(self._admission.watch())
        return port, mtls_port

    def _listen(self, target: str, *, mtls: bool = False) -> int:
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(target)
            else:
                credentials = self._tls.credentials(ask_for_certificates=mtls)
                port = self._server.add_secure_port(target, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise PortTaken(f"{target} can't be listened on: is another service there?")
        return port

    async def drain(self) -> None:
        """End in good order: health first, then no new calls, then those in progress get their answers."""
        self._health.drain()
        await asyncio.sleep(self._settings.drain_delay)
        self._streams.end_all()
        self._worker_operations.room.close()
        await self._server.stop(self._settings.drain)
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(self._operations.close(), self._worker_operations.close())
        self._health.close()
