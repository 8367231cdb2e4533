"""Strangers who ask for health and take no answer: nobody else notices, and the service ends as ever."""

import gzip
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobs_service.transport.probe import ask_health
from tests.bench.processes import resident_mib
from tests.e2e.demo import Demo
from tests.e2e.load import outcome_of
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
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
GZIP = ("grpc-encoding", "gzip")
INVALID, DEADLINE, EXHAUSTED = "3", "4", "8"
OVERLOADED = "RESOURCE_EXHAUSTED OVERLOADED"
MEBIBYTE = 2**20


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


def huge(field: int) -> bytes:
    """A message with a string of nearly 4 MiB in this field, which takes 4 KiB on the wire."""
    name = b"a" * (4 * MEBIBYTE - 8)
    length = bytes([len(name) & 127 | 128, len(name) >> 7 & 127 | 128, len(name) >> 14 & 127 | 128, 1])
    return grpc_message(gzip.compress(bytes([field << 3 | 2]) + length + name), flag=1)


@pytest.mark.parametrize(("path", "field"), [(CHECK, 1), (WATCH, 1), (REFLECTION, 3)])
def test_a_request_larger_than_any_name_is_refused(demo: Demo, path: str, field: int) -> None:
    with Wire(demo.target) as wire:
        wire.hello()
        wire.call(path, huge(field), GZIP)
        assert wire.reply().status == INVALID


@pytest.mark.parametrize(("path", "field"), [(CHECK, 1), (WATCH, 1), (REFLECTION, 3)])
def test_requests_of_strangers_who_take_no_answer_are_not_kept(demo: Demo, path: str, field: int) -> None:
    pid, message = demo.service.process.pid, huge(field)
    before = resident_mib(pid)
    with ExitStack() as stack:
        for _ in range(10):
            stranger = stack.enter_context(Stranger(demo.target))
            asked = [stranger.ask(path, message, GZIP) for _ in range(6)]
            stranger.reply(asked[-1])
        assert ask_health(demo.target, "", seconds=10) == "SERVING"
        # Of 240 MiB that were sent.
        assert resident_mib(pid) - before < 64


def test_one_connection_has_few_watches_and_others_have_theirs(demo: Demo) -> None:
    with Stranger(demo.target) as stranger:
        for _ in range(20):
            stranger.ask(WATCH)
        assert stranger.reply(stranger.ask(WATCH)).status == EXHAUSTED
        assert ask_health(demo.target, "", seconds=10) == "SERVING"
        with grpc.insecure_channel(demo.target) as channel:
            watch = watched(channel, "")
            assert next(watch).status == SERVING
            watch.cancel()


def test_strangers_on_many_connections_leave_health_and_make_room_again(demo: Demo) -> None:
    with ExitStack() as stack:
        strangers = [stack.enter_context(Stranger(demo.target)) for _ in range(50)]
        for stranger in strangers:
            for _ in range(20):
                stranger.ask(WATCH)
        with grpc.insecure_channel(demo.target) as channel:
            wait_until(lambda: outcome_of_a_watch(channel) == OVERLOADED, 30, "no room")
        assert ask_health(demo.target, "", seconds=10) == "SERVING"
    with grpc.insecure_channel(demo.target) as channel:
        wait_until(lambda: outcome_of_a_watch(channel) == "OK", 30, "room again")


def outcome_of_a_watch(channel: grpc.Channel) -> str:
    watch = watched(channel, "")
    try:
        next(watch)
    except grpc.RpcError as error:
        return outcome_of(error)
    watch.cancel()
    return "OK"


@pytest.mark.long
@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_a_question_that_never_comes_is_not_waited_for(demo: Demo, path: str) -> None:
    with Wire(demo.target, seconds=30) as wire:
        wire.hello()
        wire.send(frame(HEADERS, END_HEADERS, 1, literal(call_headers(path))))
        assert wire.reply().status == DEADLINE
