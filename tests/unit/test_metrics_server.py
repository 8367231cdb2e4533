"""Metrics and probes over HTTP: what is answered, and that nobody can keep a probe from its answer."""

import asyncio
import errno
import http.client
import resource
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from jobs_service import app
from jobs_service.telemetry.http import MAX_CONNECTIONS, MetricsServer, answers, make_app
from jobs_service.telemetry.metrics import Metrics
from tests.support.service import wait_until

PATIENCE = 10


class Service:
    """What is asked by the probes."""

    ready = True
    live = True

    def __init__(self) -> None:
        served = make_app(Metrics().registry, lambda: self.ready, lambda: self.live)
        self.server = MetricsServer("127.0.0.1", 0, served)
        self.server.start()

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), PATIENCE)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.close()


def threads_of_requests() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_metrics_are_told_as_prometheus_reads_them(service: Service) -> None:
    status, text = service.ask("/metrics")
    assert status == 200
    assert "# TYPE jobs_calls_total counter" in text
    # The time of creation of each series would double their number.
    assert "_created" not in text


@pytest.mark.parametrize(("path", "answer"), [("/ready", "ready"), ("/live", "live")])
def test_a_probe_is_answered_by_its_status(service: Service, path: str, answer: str) -> None:
    assert service.ask(path)[0] == 200
    setattr(service, answer, False)
    assert service.ask(path)[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics/", "/ready/x", "/favicon.ico", "/METRICS"])
def test_any_other_path_is_not_found(service: Service, path: str) -> None:
    assert service.ask(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/metrics", "/ready", "/live"])
def test_any_other_method_is_refused(service: Service, path: str, method: str) -> None:
    assert service.ask(path, method)[0] == 405


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /ready HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /ready HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /ready HTTP/1.1\r\n" + (b"A: " + b"b" * 20_000 + b"\r\n") * 4 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_is_answered(
    service: Service, sent: bytes, answer: bytes
) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        assert answer in connection.recv(1000)
    assert service.ask("/ready")[0] == 200


def test_without_free_files_it_waits_before_it_tries_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def refuse(_: object) -> None:
        raise OSError(errno.EMFILE, "no files")

    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(socketserver.TCPServer, "get_request", refuse)
    with pytest.raises(OSError, match="no files"):
        service.server._server.get_request()
    assert waits == [0.1]


def test_a_service_may_open_as_many_files_as_it_can_be_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        app._allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nothing_of_versions_is_told(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\n\r\n")
        assert b"Python" not in connection.recv(1000)


def test_silent_clients_neither_pile_up_nor_keep_a_probe_waiting(service: Service) -> None:
    silent = [service.connect() for _ in range(MAX_CONNECTIONS * 5)]
    try:
        assert service.ask("/ready")[0] == 200
        wait_until(lambda: threads_of_requests() <= MAX_CONNECTIONS, PATIENCE, "the oldest are cut")
    finally:
        for connection in silent:
            connection.close()


def test_a_client_that_drips_is_cut_when_its_time_is_over(service: Service) -> None:
    with service.connect() as dripping:
        dripping.sendall(b"GET /ready HTTP/1.1\r\nA: ")
        wait_until(threads_of_requests, PATIENCE, "its thread has begun")
        service.server._server.cut_those_before(time.monotonic())
        assert dripping.recv(1000) == b""


def test_open_connections_do_not_hold_up_the_end(service: Service) -> None:
    with service.connect() as silent:
        wait_until(threads_of_requests, PATIENCE, "its thread has begun")
        service.server.close()
        assert silent.recv(1000) == b""
    with pytest.raises(ConnectionRefusedError):
        service.connect()


def test_an_address_that_is_taken_is_not_shared(service: Service) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer("127.0.0.1", service.server.port, make_app(Metrics().registry, bool, bool))


def test_ipv6_can_be_listened_on() -> None:
    server = MetricsServer("::1", 0, make_app(Metrics().registry, bool, bool))
    server.start()
    with socket.create_connection(("::1", server.port), PATIENCE) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        assert b" 503 " in connection.recv(1000)
    server.close()


def test_the_event_loop_answers_unless_it_is_held_or_has_ended() -> None:
    loop, held = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert answers(loop)
    loop.call_soon_threadsafe(held.wait)
    assert not answers(loop, seconds=0.05)
    held.set()
    assert answers(loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert not answers(loop, seconds=0.05)
    loop.close()
    assert not answers(loop)
