"""Strangers who ask for health and take no answer: nobody else notices, and the service ends as ever."""

from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.demo import Demo
from tests.fuzz.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Wire,
    call_headers,
    frame,
    grpc_message,
    literal,
)
from tests.support.service import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
WATCH = "/grpc.health.v1.Health/Watch"


class Stranger(Wire):
    """Takes not a byte of any message: its window is nothing."""

    def __init__(self, target: str) -> None:
        super().__init__(target, seconds=2)
        self._stream = -1
        self.send(PREFACE, frame(SETTINGS, 0, 0, b"\x00\x04\0\0\0\0"))

    def ask(self, path: str, message: bytes = grpc_message(b""), *more: tuple[str, str]) -> int:
        """Begin a call, and return its stream."""
        self._stream += 2
        head = frame(HEADERS, END_HEADERS, self._stream, literal(call_headers(path, *more)))
        assert self.send(head, frame(DATA, END_STREAM, self._stream, message))
        return self._stream

    def asked(self, path: str) -> "Stranger":
        """Begin a call, and wait until the service answers it: with headers, for more there is no room."""
        assert self.reply(self.ask(path)).headers
        return self


def watched(channel: grpc.Channel, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=15)


def test_a_watcher_who_takes_nothing_keeps_nothing_from_others_nor_the_service_from_ending(
    fresh: Path,
) -> None:
    settings = {"JOBS_DRAIN_DELAY_SECONDS": "1", "JOBS_DRAIN_SECONDS": "2"}
    with Demo(fresh, **settings) as demo, Stranger(demo.target).asked(WATCH):
        with grpc.insecure_channel(demo.target) as channel:
            watch = watched(channel, "")
            assert next(watch).status == SERVING
            demo.service.process.terminate()
            assert next(watch).status == NOT_SERVING
        assert demo.service.process.wait(20) == 0


def test_a_watcher_who_took_nothing_and_leaves_is_no_fault_of_ours(fresh: Path) -> None:
    with Demo(fresh, JOBS_LOG_LEVEL="DEBUG") as demo:
        with Stranger(demo.target).asked(WATCH):
            pass

        def ended() -> list[dict[str, Any]]:
            return [line for line in demo.service.lines("call") if line["method"] == WATCH]

        (line,) = wait_until(ended, 10, "the end of the watch")
        assert line["code"] == "CANCELLED"
        assert not [line for line in demo.service.lines() if line["level"] == "ERROR" or "exception" in line]


def test_a_watch_of_what_is_not_there_says_so_and_goes_on(demo: Demo) -> None:
    with grpc.insecure_channel(demo.target) as channel:
        watch = watched(channel, "jobs.v9.JobsService")
        assert next(watch).status == SERVICE_UNKNOWN
        assert watch.is_active()
        watch.cancel()
