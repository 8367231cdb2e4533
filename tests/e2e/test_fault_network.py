"""The network cut without a word: between service and Postgres, and between client and service."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobs.v1 import jobs_pb2
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import (
    POOL_SIZE,
    Figures,
    RecordedLoad,
    free_port,
    require_clean_pool,
    require_no_sessions,
    wait_for_health,
    writer_of_a_dataset,
)
from tests.e2e.load import CREATORS, DATABASE_AWAY, NO_ANSWER, NO_SERVICE, channel_to, outcome_of, serving
from tests.support.client import Client
from tests.support.netns import FAR, HOME, Way, cable, far_postgres
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import KEY, User

Say = Callable[[object], None]

WINDOW_SECONDS = 5
# More than the service's own limits together: tcp_user_timeout, connect_timeout, of a batch and its grace.
NOTICED_SECONDS = 30


def assert_answered_within(seconds: float, target: str, user: User) -> None:
    """A caller in a hurry is not kept waiting for a database that is away."""
    with channel_to(target) as channel:
        client = Client(channel, make_token(KEY, user.soeid))
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as refusal:
            client.call("ListJobs", jobs_pb2.ListJobsRequest(), timeout=seconds)
        assert time.monotonic() - began < seconds + 1
    assert outcome_of(refusal.value) in {NO_ANSWER, "DEADLINE_EXCEEDED DEADLINE_EXCEEDED", DATABASE_AWAY}


@pytest.mark.long
@pytest.mark.own_network
@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
def test_a_network_cut_between_service_and_postgres_is_noticed_and_over_when_it_is_back(
    tmp_path: Path, say: Say, way: Way
) -> None:
    with cable() as far, far_postgres(tmp_path / "postgres", far) as postgres:
        url = postgres.new_database()
        user, dataset = writer_of_a_dataset(url)
        with serving(tmp_path, service_settings(url, tmp_path)) as service:
            with RecordedLoad(service.target, user, dataset) as load:
                load.wait_for_more(200)
                before = load.measure(WINDOW_SECONDS)
                with far.cut(way):
                    cut = time.monotonic()
                    wait_until(lambda: load.outcomes[DATABASE_AWAY], NOTICED_SECONDS, "callers are told")
                    told = time.monotonic() - cut
                    wait_for_health(service.target, "NOT_SERVING")
                    unready = time.monotonic() - cut
                    assert_answered_within(1, service.target, user)
                    # More often than there are callers: nobody waits for the network.
                    wait_until(lambda: load.outcomes[DATABASE_AWAY] > CREATORS, 30, "callers are told again")
                back = time.monotonic()
                recovered = load.until_calls_succeed(back)
                wait_for_health(service.target, "SERVING")
                after = load.measure(WINDOW_SECONDS)
            load.require_outcomes()
            verdict = load.history.check(url)
            verdict.require()
            say(f"told after {told:.1f} s, NOT_SERVING after {unready:.1f} s, cut for {back - cut:.1f} s")
            fault = f"network to Postgres cut ({way.name})"
            say(Figures(fault, verdict, recovered, before, after, load.slowest))
            require_clean_pool(url)
            assert service.stop() == 0
        require_no_sessions(url)


def connections(service: ServiceProcess) -> int:
    """How many connections the service has to clients at the other end of the cable."""
    port = int(service.target.rpartition(":")[2])
    home = socket.inet_aton(HOME)[::-1].hex().upper()
    tables = [Path(f"/proc/{service.process.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split()[1:4] for table in tables for line in table.splitlines()]
    return sum(
        local.endswith(f":{port:04X}") and f"{home}:" in peer and state == "01" for local, peer, state in rows
    )


def sockets(service: ServiceProcess) -> int:
    """How many sockets the service has open."""
    fds = Path(f"/proc/{service.process.pid}/fd").iterdir()
    return sum(os.readlink(fd).startswith("socket:") for fd in fds)


def watch_health(channel: grpc.Channel, ended: list[str]) -> None:
    """Watch until the stream ends, and note how it ended."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        for _ in stub.Watch(health_pb2.HealthCheckRequest(), timeout=120):
            pass
    except grpc.RpcError as error:
        ended.append(outcome_of(error))


@contextmanager
def watching(target: str) -> Iterator[list[str]]:
    """A client that pings a connection which is silent, and waits for the health to change."""
    pings = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 2_000)]
    ended: list[str] = []
    with grpc.insecure_channel(target, options=pings) as channel:
        grpc.channel_ready_future(channel).result(10)
        thread = threading.Thread(target=watch_health, args=(channel, ended))
        thread.start()
        yield ended
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.long
@pytest.mark.own_network
@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
def test_a_network_cut_between_client_and_service_leaves_no_connection_and_no_call_behind(
    tmp_path: Path, say: Say, way: Way
) -> None:
    with cable() as far, far_postgres(tmp_path / "postgres", far) as postgres:
        url = postgres.new_database()
        user, dataset = writer_of_a_dataset(url)
        settings = service_settings(url, tmp_path) | {
            "JOBS_LISTEN": f"{FAR}:{free_port()}",
            "JOBS_INSECURE_LISTEN": "on",
            "JOBS_KEEPALIVE_SECONDS": "1",
        }
        with serving(tmp_path, settings, prefix=far.prefix) as service:
            quiet = sockets(service)
            with RecordedLoad(service.target, user, dataset) as load, watching(service.target) as ended:
                load.wait_for_more(200)
                before = load.measure(WINDOW_SECONDS)
                assert connections(service) == CREATORS + 1
                with far.cut(way):
                    cut = time.monotonic()
                    wait_until(lambda: ended, 20, "a client that pings notices")
                    noticed = time.monotonic() - cut
                    wait_until(lambda: connections(service) == 0, 60, "the service closes what is dead")
                    closed = time.monotonic() - cut
                    wait_until(lambda: sockets(service) <= quiet + POOL_SIZE, 10, "no socket is left")
                back = time.monotonic()
                recovered = load.until_calls_succeed(back)
                after = load.measure(WINDOW_SECONDS)
                say(f"client noticed after {noticed:.1f} s, service closed after {closed:.1f} s")
            assert ended == [NO_SERVICE]
            load.require_outcomes(NO_SERVICE, NO_ANSWER)
            assert load.outcomes[DATABASE_AWAY] == 0
            verdict = load.history.check(url)
            fault = f"network to clients cut ({way.name})"
            say(Figures(fault, verdict, recovered, before, after, load.slowest))
            verdict.require()
            require_clean_pool(url)
            assert service.stop() == 0
        require_no_sessions(url)
