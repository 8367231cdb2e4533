"""The service killed, and its callers in too great a hurry: every create once, whoever was told what."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import (
    backends,
    free_port,
    jobs_there,
    require_clean_pool,
    require_no_sessions,
    writer_of_a_dataset,
)
from tests.e2e.load import NO_SERVICE, channel_to, outcome_of, serving
from tests.support.client import Client
from tests.support.history import History
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import KEY, User

Say = Callable[[object], None]

CREATES = 1000
CALLERS = 20
HASTY_CREATES = 500
# So few that some are answered in time.
HASTY_CALLERS = 3
HASTY_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02)


@contextmanager
def calling(user: User, *orders: Sequence[str]) -> Iterator[list[Client]]:
    """CALLERS clients; each goes to the first of its addresses, or the next where nobody is there."""
    targets = ["ipv4:" + ",".join(orders[number % len(orders)]) for number in range(CALLERS)]
    channels = [channel_to(target) for target in targets]
    yield [Client(channel, make_token(KEY, user.soeid)) for channel in channels]
    for channel in channels:
        channel.close()


class Creates:
    """A thousand creates, each sent again with its request_id until it is acknowledged."""

    def __init__(self, callers: list[Client], dataset_id: int) -> None:
        self.history = History()
        self.refused: set[str] = set()
        # When the service was killed, and how long after it a create succeeded that began after it.
        self.killed, self.again_after = float("inf"), float("inf")
        self._callers, self._dataset_id = callers, dataset_id
        self._thread = threading.Thread(target=self._run)

    def begin(self) -> None:
        """Begin, and return when a third is acknowledged."""
        self._thread.start()
        wait_until(lambda: len(self.history.acknowledged) > CREATES // 3, 60, "a third")

    def kill(self, service: ServiceProcess) -> None:
        """kill -9 of a service that they call."""
        service.kill()
        assert len(self.history.acknowledged) < CREATES, "killed too late"
        self.killed = time.monotonic()

    def end(self) -> None:
        """Return when all are acknowledged."""
        self._thread.join(120)
        assert not self._thread.is_alive(), self.refused

    def _run(self) -> None:
        with ThreadPoolExecutor(len(self._callers)) as threads:
            list(threads.map(self._share, self._callers))

    def _share(self, client: Client) -> None:
        for _ in range(CREATES // CALLERS):
            request_id = str(uuid.uuid4())
            self.history.sending(request_id)
            wait_until(lambda: self._once(client, request_id), 60, "acknowledged")  # noqa: B023 - now

    def _once(self, client: Client, request_id: str) -> bool:
        began = time.monotonic()
        try:
            made = client.create(dataset_id=self._dataset_id, request_id=request_id)
        except grpc.RpcError as error:
            self.refused.add(outcome_of(error))
            return False
        if began > self.killed:
            self.again_after = min(self.again_after, time.monotonic() - self.killed)
        self.history.created(request_id, made.job.job_id)
        return True

    def require_a_thousand(self, url: str) -> str:
        """AssertionError unless each is there once; the figures in words."""
        verdict = self.history.check(url)
        verdict.require()
        assert verdict.acknowledged == jobs_there(url) == CREATES
        assert self.refused <= {NO_SERVICE}
        return (
            f"{CREATES} acknowledged, 0 lost, 0 doubled; calls succeed again after {self.again_after:.2f} s"
        )


def test_a_thousand_creates_are_a_thousand_jobs_though_the_service_is_killed_and_started_again(
    postgres_18: PostgresServer, tmp_path: Path, say: Say
) -> None:
    url, address = postgres_18.new_database(), f"127.0.0.1:{free_port()}"
    user, dataset = writer_of_a_dataset(url)
    settings = service_settings(url, tmp_path) | {"JOBS_LISTEN": address}
    with calling(user, [address]) as callers:
        creates = Creates(callers, dataset)
        with serving(tmp_path, settings) as first:
            creates.begin()
            creates.kill(first)
        with serving(tmp_path, settings) as second:
            creates.end()
            say(f"service killed: {creates.require_a_thousand(url)}")
            require_clean_pool(url)
            assert second.stop() == 0
    require_no_sessions(url)


@pytest.mark.long
def test_a_thousand_creates_are_a_thousand_jobs_though_one_of_two_replicas_is_killed(
    postgres_18: PostgresServer, tmp_path: Path, say: Say
) -> None:
    url = postgres_18.new_database()
    user, dataset = writer_of_a_dataset(url)
    settings = service_settings(url, tmp_path)
    with serving(tmp_path, settings) as first, serving(tmp_path, settings) as second:
        targets = [first.target, second.target]
        with calling(user, targets, targets[::-1]) as callers:
            creates = Creates(callers, dataset)
            creates.begin()
            creates.kill(first)
            creates.end()
        say(f"one of two replicas killed: {creates.require_a_thousand(url)}")
        require_clean_pool(url)
        assert second.stop() == 0
    require_no_sessions(url)


def hasty_create(client: Client, dataset_id: int, request_id: str, seconds: float) -> str | None:
    """The id of the job that was made; None where the time was over before the answer came."""
    fields: dict[str, Any] = {"run_parameters": {"file_path": "a.csv"}, "request_id": request_id}
    request = jobs_pb2.CreateJobRequest(dataset_id=dataset_id, run_type=jobs_pb2.RUN_TYPE_IMPORT, **fields)
    try:
        return str(client.call("CreateJob", request, timeout=seconds).job.job_id)
    except grpc.RpcError as error:
        if not outcome_of(error).startswith("DEADLINE_EXCEEDED "):
            raise
        return None


def test_creates_cut_by_their_deadlines_are_doubled_by_no_retry_and_cost_no_connection(
    postgres_18: PostgresServer, tmp_path: Path, say: Say
) -> None:
    url, history = postgres_18.new_database(), History()
    user, dataset = writer_of_a_dataset(url)
    deadlines = {str(uuid.uuid4()): HASTY_SECONDS[number % 5] for number in range(HASTY_CREATES)}
    with (
        serving(tmp_path, service_settings(url, tmp_path)) as service,
        calling(user, [service.target]) as callers,
    ):

        def create(number: int, request_id: str, seconds: float) -> bool:
            job_id = hasty_create(callers[number % CALLERS], dataset, request_id, seconds)
            if job_id is not None:
                history.created(request_id, job_id)
            return job_id is not None

        for client in callers:
            client.list(page_size=1)
        pool = backends(url)
        with ThreadPoolExecutor(HASTY_CALLERS) as threads:
            for request_id in deadlines:
                history.sending(request_id)
            answered = sum(threads.map(create, range(HASTY_CREATES), deadlines, deadlines.values()))
            # Those that had begun go on to their end.
            require_clean_pool(url)
            there = jobs_there(url)
            patient = [30.0] * HASTY_CREATES
            assert all(threads.map(create, range(HASTY_CREATES), deadlines, patient))
        verdict = history.check(url)
        verdict.require()
        assert verdict.acknowledged == jobs_there(url) == HASTY_CREATES
        assert pool <= backends(url)
        require_clean_pool(url)
        assert service.stop() == 0
    require_no_sessions(url)
    say(
        f"deadlines of 1 to 20 ms: {HASTY_CREATES} creates, {answered} answered in time, {there} there after"
        f" it; each retried: {verdict.lost} lost, {verdict.doubled} doubled"
    )
