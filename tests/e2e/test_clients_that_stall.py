"""Clients that begin calls and do not send, or ask and do not read: they hold up nobody but themselves."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

from jobs.v1 import jobs_pb2
from jobs_service.transport.probe import ask_health
from tests.bench.http2 import Connection, field, message
from tests.e2e.load import channel_to, outcome_of
from tests.e2e.test_overload import HEALTH_SECONDS, OVERLOADED, RESOURCE_EXHAUSTED, SERVICE, Busy
from tests.support.client import Client, refused
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess, wait_until

ALL = jobs_pb2.ListJobsRequest(view=jobs_pb2.JOB_VIEW_FULL)
INVALID_ARGUMENT, UNAUTHENTICATED = (
    str(code.value[0]) for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED)
)


def test_those_who_never_send_their_message_get_a_status_and_hold_up_no_drain(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    # To be held up for the whole drain would be longer than the test waits for the end.
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_RECEIVE_SECONDS="1", JOBS_DRAIN_SECONDS="120")
    with busy.serving(tmp_path) as service, channel_to(service.target) as channel, never() as messages:
        method: Any = channel.stream_unary(f"{SERVICE}CreateJob")
        metadata = Client(channel, busy.token).metadata
        calls = [method.future(messages, metadata=metadata) for _ in range(3)]
        assert [outcome_of(call.exception(30)) for call in calls] == [OVERLOADED] * 3
        wait_until(lambda: _ends(service) == [("RESOURCE_EXHAUSTED", "OVERLOADED")] * 3, 30, "in the log")
        method.future(messages, metadata=metadata)
        assert service.stop() == 0


@contextmanager
def never() -> Iterator[Iterator[object]]:
    """Messages that do not come."""
    over = threading.Event()
    try:
        yield iter(over.wait, True)
    finally:
        over.set()


def test_a_call_that_ends_without_a_message_is_a_bad_request(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    busy = Busy(postgres_18, tmp_path)
    with busy.serving(tmp_path) as service, closing(Connection(service.target)) as client:
        client.call(busy.block(service.target, "CreateJob"), b"")
        assert _statuses(client, 1) == [INVALID_ARGUMENT]
        wait_until(lambda: _ends(service) == [("INVALID_ARGUMENT", "INVALID_FIELD")], 30, "it is in the log")


def test_of_two_messages_the_first_is_the_request(postgres_18: PostgresServer, tmp_path: Path) -> None:
    busy = Busy(postgres_18, tmp_path)
    with busy.serving(tmp_path) as service, closing(Connection(service.target)) as client:
        first = message(busy.request().SerializeToString())
        client.call(busy.block(service.target, "CreateJob"), first + message(b"no message"))
        assert _statuses(client, 1) == ["0"]


def test_without_credentials_a_call_is_refused_before_its_message_comes(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_CALLS="1", JOBS_MAX_RECEIVE_SECONDS="600")
    with busy.serving(tmp_path) as service, closing(Connection(service.target)) as stranger:
        for _ in range(20):
            stranger.call(busy.block(service.target, "CreateJob", without="authorization"), None)
        assert _statuses(stranger, 20) == [UNAUTHENTICATED] * 20
        wait_until(
            lambda: _ends(service) == [("UNAUTHENTICATED", "CREDENTIALS_MISSING")] * 20,
            30,
            "it is in the log",
        )


def test_when_all_places_are_taken_those_who_send_nothing_lose_theirs_to_newcomers(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_CALLS="50", JOBS_MAX_RECEIVE_SECONDS="600")
    with busy.serving(tmp_path) as service, channel_to(service.target) as channel:
        client = Client(channel, busy.token)
        client.create(dataset_id=busy.dataset)
        with closing(Connection(service.target)) as silent:
            for _ in range(60):
                silent.call(busy.block(service.target, "CreateJob"), None)
            silent.flush()
            wait_until(
                lambda: ("RESOURCE_EXHAUSTED", "OVERLOADED") in _ends(service), 30, "every place taken"
            )
            wait_until(lambda: _outcome(client) == "OK", 30, "one is given to who sends")
            assert [_outcome(client) for _ in range(20)] == ["OK"] * 20
            assert set(_statuses(silent, 11)) == {RESOURCE_EXHAUSTED}


class Deaf:
    """Asks for all jobs on a connection of its own, and reads nothing."""

    def __init__(self, busy: Busy, service: ServiceProcess) -> None:
        self.token = busy.reader()
        self._block = busy.block(service.target, "ListJobs", self.token)
        self._connection = Connection(service.target, window=10_000)
        self.ask()

    def ask(self, block: bytes | None = None) -> None:
        """Ask once more, as somebody else if these headers say so."""
        self._connection.call(block or self._block, message(ALL.SerializeToString()))
        self._connection.flush()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _with_large_jobs(busy: Busy, channel: grpc.Channel) -> Client:
    client = Client(channel, busy.token)
    for _ in range(15):
        client.call("CreateJob", busy.request(text="x" * 200_000))
    return client


def test_answers_that_nobody_reads_are_an_overload_for_their_connection_and_at_last_for_all(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_ANSWER_BYTES=str(8 * 1024 * 1024))
    with busy.serving(tmp_path) as service, channel_to(service.target) as channel:
        client = _with_large_jobs(busy, channel)
        somebody_else = busy.block(service.target, "ListJobs", busy.reader())
        with closing(Deaf(busy, service)) as one:
            wait_until(lambda: _lists(service) == 1, 30, "its answer waits")

            def is_refused() -> bool:
                one.ask(somebody_else)
                return ("RESOURCE_EXHAUSTED", "OVERLOADED") in _ends(service)

            wait_until(is_refused, 30, "it is refused more")
            assert _outcome(client) == "OK"
            with closing(Deaf(busy, service)), closing(Deaf(busy, service)):
                wait_until(lambda: _outcome(client) == OVERLOADED, 30, "nobody is given more")
                with refused("RESOURCE_EXHAUSTED", "OVERLOADED") as refusal:
                    client.create(dataset_id=busy.dataset)
                assert refusal.it.metadata["resource"] == "bytes of answers"
                assert ask_health(service.target, "", seconds=HEALTH_SECONDS) == "SERVING"
        wait_until(lambda: _outcome(client) == "OK", 30, "they are gone with their connections")


def test_a_caller_who_reads_nothing_is_given_no_more_on_other_connections_either(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_ANSWER_BYTES=str(8 * 1024 * 1024))
    with busy.serving(tmp_path) as service, channel_to(service.target) as channel:
        client = _with_large_jobs(busy, channel)
        with closing(Deaf(busy, service)) as deaf, channel_to(service.target) as another:
            same = Client(another, deaf.token)
            wait_until(lambda: _outcome(same) == OVERLOADED, 10, "it is refused more")
            assert _outcome(client) == "OK"
        wait_until(lambda: _outcome(Client(channel, deaf.token)) == "OK", 30, "given up with the connection")


def _lists(service: ServiceProcess) -> int:
    return sum(line["method"].endswith("ListJobs") for line in service.lines("call"))


def _ends(service: ServiceProcess) -> list[tuple[str, str]]:
    """The codes and reasons of those calls that were refused."""
    return [(line["code"], line["reason"]) for line in service.lines("call") if line["code"] != "OK"]


def _statuses(connection: Connection, count: int) -> list[str]:
    """Send what has been begun, and return the status of each of so many calls."""
    ended: list[bytes] = []
    while len(ended) < count:
        connection.flush()
        ended += [trailers for _, trailers in connection.receive()]
    return [(field(trailers, b"grpc-status") or b"").decode() for trailers in ended]


def _outcome(client: Client) -> str:
    try:
        client.list(page_size=1)
    except grpc.RpcError as error:
        return outcome_of(error)
    return "OK"
