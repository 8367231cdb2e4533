"""Puts the service together: configuration, database, core, server, and the way down again."""

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from jobs_service import __version__
from jobs_service.config import Address, Config, ConfigError, check_serving
from jobs_service.core.access_service import AccessService
from jobs_service.core.job_service import JobService
from jobs_service.core.orphans import Orphans
from jobs_service.core.queue_heads import QueueHeads
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.opening import Storage, keep_alive, open_storage
from jobs_service.storage.announcer import Announcer
from jobs_service.storage.database import Database
from jobs_service.storage.schema import SchemaState
from jobs_service.telemetry.http import MetricsServer, answers, make_app
from jobs_service.telemetry.metrics import Metrics
from jobs_service.telemetry.traces import Tracer
from jobs_service.transport.auth import Authenticator
from jobs_service.transport.batcher import Limits
from jobs_service.transport.core_log import captured
from jobs_service.transport.credentials import Credentials, load_credentials
from jobs_service.transport.health import Health
from jobs_service.transport.interceptors.access_log import AccessLog
from jobs_service.transport.interceptors.admission import Bounds
from jobs_service.transport.key_files import watch
from jobs_service.transport.operations import Operations
from jobs_service.transport.server import SERVICES, PortTaken, Server, ServerSettings
from jobs_service.transport.worker_operations import WorkerOperations
from jobs_service.upkeep.adopt_jobs import AdoptJobs
from jobs_service.upkeep.cancel_orphans import CancelOrphans
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.expire_leases import ExpireLeases
from jobs_service.upkeep.fill_places import FillPlaces
from jobs_service.upkeep.find_heads import FindHeads
from jobs_service.upkeep.loop import Duty, Upkeep
from jobs_service.upkeep.pauses import Pauses
from jobs_service.upkeep.promote_jobs import PromoteJobs
from jobs_service.upkeep.purge_history import PurgeHistory
from jobs_service.upkeep.purge_jobs import PurgeJobs
from jobs_service.upkeep.tell_dependants import TellDependants

# How long the loop may keep a worker thread waiting that has its answer from the database. With
# Python's 5 ms, every statement of a batch waits that long under load: half the calls a second.
_SWITCH_SECONDS = 0.0005
_UPKEEP_SECONDS = 2.0

_log = logging.getLogger(__name__)


def serve(config: Config, *, migrate: bool, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT. ready: called with the port once calls are answered.

    Raises ConfigError, PortTaken, and what open_storage raises.
    """
    check_serving(config)
    credentials = load_credentials(config)
    # Until the loop takes signals, SIGTERM ends the process through the finally blocks all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.setswitchinterval(_SWITCH_SECONDS)
    _allow_files()
    metrics = Metrics()
    metrics.add_process()
    with (
        captured(),
        _tracer(config) as tracer,
        open_storage(config, migrate=migrate, exclusive=True, metrics=metrics) as storage,
    ):
        metrics.build_is(__version__, storage.schema.found or "")
        asyncio.run(_serve(config, storage, credentials, ready, metrics, tracer))


def _allow_files() -> None:
    # Every connection is a file, and most systems begin with 1024.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _tracer(config: Config) -> Iterator[Tracer | None]:
    if config.otlp_endpoint is None:
        yield None
        return
    try:
        # Only here: without a collector none of its code is loaded.
        from jobs_service.telemetry.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigError(f"JOBS_OTLP_ENDPOINT needs the extra 'traces' ({error.name} is missing)") from None
    tracer = OtlpTracer(config.otlp_endpoint, __version__)
    try:
        yield tracer
    finally:
        tracer.close()


async def _serve(
    config: Config,
    storage: Storage,
    credentials: Credentials,
    ready: Callable[[int], None],
    metrics: Metrics,
    tracer: Tracer | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    signals, heads = Signals(), QueueHeads()
    pauses = Pauses()
    operations, worker_operations = _operations(config, storage.database, signals, heads, metrics)
    health = Health(SERVICES, lambda: _is_ready(storage.database))
    metrics.ready_is(lambda: health.ready)
    upkeep = Upkeep(_duties(config, storage.database, signals, heads, pauses, metrics), metrics.duties)
    tls = credentials.tls
    metrics.keys.ask(
        lambda: {group.what: group.refused for group in credentials.files},
        (lambda: tls.certificate.expiry) if tls else None,
    )
    certificates = tls.clients if tls and config.mtls_listen else None
    authenticator = Authenticator(credentials.verifier, certificates, operations.find_user_id)
    access_log = AccessLog(metrics.calls, tracer)
    server = Server(
        _server_settings(config), tls, operations, worker_operations, authenticator, health, access_log
    )
    with _over_http(config, metrics, health), _announcing(storage.announcer, signals, worker_operations):
        port, mtls_port = await server.start()
        _log.info("serving", extra={"fields": _serving(config, port, mtls_port)})
        ready(port)
        upkeep.start()
        tasks = [
            asyncio.create_task(health.run()),
            asyncio.create_task(watch(credentials.files)),
            asyncio.create_task(pauses.run()),
        ]
        if storage.postgres is not None:
            tasks.append(asyncio.create_task(keep_alive(storage.postgres)))
        for task in tasks:
            task.add_done_callback(lambda ended: _stop_if_failed(ended, stop))
        await stop.wait()
        _log.info("draining")
        upkeep.stop()
        await server.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _end(upkeep, storage.database)


def _operations(
    config: Config, database: Database, signals: Signals, heads: QueueHeads, metrics: Metrics
) -> tuple[Operations, WorkerOperations]:
    limits = Limits(
        rows=config.batch_rows,
        waiting=config.max_waiting,
        seconds=config.batch_seconds,
        patience=config.max_wait_seconds,
    )
    jobs = Operations(
        JobService(database, signals),
        AccessService(database, signals),
        limits=limits,
        list_threads=config.list_threads,
        read_seconds=config.read_seconds,
        abort=database.abort,
        metrics=metrics,
    )
    work = WorkerOperations(
        WorkerService(database, signals, heads),
        signals,
        limits=limits,
        max_waiters=config.max_waiters,
        abort=database.abort,
        metrics=metrics,
    )
    return jobs, work


def _duties(
    config: Config,
    database: Database,
    signals: Signals,
    heads: QueueHeads,
    pauses: Pauses,
    metrics: Metrics,
) -> list[Duty]:
    duties: list[Duty] = [
        FindHeads(database, signals, heads),
        CountJobs(database, metrics.jobs),
        TellDependants(database, signals),
        ExpireLeases(database, signals, pauses, metrics.work),
        PromoteJobs(database, signals),
        AdoptJobs(database, signals),
        FillPlaces(database, signals),
        CancelOrphans(Orphans(database, signals)),
    ]
    if config.keep_jobs_days is not None:
        duties.append(PurgeJobs(database, timedelta(days=config.keep_jobs_days), metrics.work))
    if config.keep_history_days is not None:
        duties.append(PurgeHistory(database, timedelta(days=config.keep_history_days), metrics.work))
    return duties


@contextmanager
def _announcing(
    announcer: Announcer, signals: Signals, worker_operations: WorkerOperations
) -> Iterator[None]:
    """Tell other replicas what happens here and wake who waits for what happens there, in the block."""
    signals.ready.subscribe(announcer.ready)
    signals.revoked.subscribe(announcer.revoked)
    announcer.start(worker_operations.heard())
    try:
        yield
    finally:
        announcer.close()


@contextmanager
def _over_http(config: Config, metrics: Metrics, health: Health) -> Iterator[None]:
    """Serve metrics and probes for as long as the block lasts, the drain included."""
    if config.metrics_listen is None:
        yield
        return
    loop = asyncio.get_running_loop()
    served = make_app(metrics.registry, lambda: health.ready, lambda: answers(loop))
    host, port = config.metrics_listen.host, config.metrics_listen.port
    try:
        server = MetricsServer(host, port, served)
    except OSError:
        target = config.metrics_listen.target
        raise PortTaken(f"{target} can't be listened on: is another service there?") from None
    _log.info("serving metrics", extra={"fields": {"host": host, "port": server.port}})
    server.start()
    try:
        yield
    finally:
        server.close()


async def _end(upkeep: Upkeep, database: Database) -> None:
    """Let the duty in progress end, or cut its connection."""
    if not await asyncio.to_thread(upkeep.ended, _UPKEEP_SECONDS):
        database.abort()
        await asyncio.to_thread(upkeep.ended, _UPKEEP_SECONDS)


def _serving(config: Config, port: int, mtls_port: int | None) -> dict[str, object]:
    fields: dict[str, object] = {
        "host": config.listen.host,
        "port": port,
        "tls": config.tls_cert_file is not None,
    }
    if config.mtls_listen is not None and mtls_port is not None:
        fields["mtls_target"] = Address(config.mtls_listen.host, mtls_port).target
    return fields


def _stop_if_failed(task: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Rather no service than one that says it is ready for ever, or never gets its database back."""
    if not task.cancelled() and task.exception():
        _log.error("a task that must go on has failed", exc_info=task.exception())
        stop.set()


def _server_settings(config: Config) -> ServerSettings:
    return ServerSettings(
        target=config.listen.target,
        mtls_target=config.mtls_listen.target if config.mtls_listen else None,
        reflection=config.reflection,
        keepalive=config.keepalive_seconds,
        max_connection_age=config.max_connection_age_seconds,
        drain_delay=config.drain_delay_seconds,
        drain=config.drain_seconds,
        streams=config.max_streams,
        bounds=Bounds(
            calls=config.max_calls,
            request_bytes=config.max_request_bytes,
            answer_bytes=config.max_answer_bytes,
            receive_seconds=config.max_receive_seconds,
        ),
    )


def _is_ready(database: Database) -> bool:
    return database.schema_report(release=__version__).state is SchemaState.READY
