"""What the tests of faults share: callers whose history is kept, and what must be clean when it is over."""

import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from jobs_service.transport.operations import BATCHERS
from jobs_service.transport.probe import ask_health
from jobs_service.transport.worker_operations import WORK_BATCHERS
from tests.e2e.load import CREATORS, DATABASE_AWAY, Load, Settings, outcome_of, serving
from tests.support.client import Client
from tests.support.history import History, Verdict
from tests.support.postgres import connect
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import User, World

NOT_CANCELLABLE = "FAILED_PRECONDITION JOB_NOT_CANCELLABLE"
# Of a service with default settings: 8 lists, 3 more.
POOL_SIZE = BATCHERS + WORK_BATCHERS + 8 + 3
RECOVERY_SECONDS = 30


class RecordedLoad(Load):
    """Callers that create jobs, read them back each way, list them, and cancel every fourth.

    Each lists by an external_id of its own, so it knows what must be in its list. history: shared by
    loads on several replicas.
    """

    def __init__(
        self,
        target: str,
        user: User,
        dataset_id: int,
        *,
        callers: int = CREATORS,
        token: str | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__(target, user, dataset_id, callers=callers, token=token)
        self.history = history or History()
        self.began = time.monotonic()

    def _run(self, client: Client) -> None:
        own, made = uuid.uuid4().hex, 0
        while not self._stopping.is_set():
            job_id = self._create(client, own)
            if job_id is not None:
                made += 1
                self._try(self._read, client.get, job_id)
                self._try(self._read, client.status, job_id)
                self._try(self._list, client, own, job_id)
                if made % 4 == 0:
                    self._try(self._cancel, client, job_id, accepted=NOT_CANCELLABLE)
                    self._try(self._read, client.get, job_id)

    def _create(self, client: Client, own: str) -> str | None:
        request_id, began = str(uuid.uuid4()), time.monotonic()
        self.history.sending(request_id)
        fields: dict[str, Any] = {
            "dataset_id": self._dataset_id,
            "request_id": request_id,
            "external_id": own,
        }
        made = self._try(client.create, **fields)
        if made is None:
            return None
        self._remember(made.job, since=0)
        self.history.created(request_id, made.job.job_id)
        self.acknowledged[request_id] = made.job.job_id
        self.last_acknowledged, self.last_began = time.monotonic(), began
        return str(made.job.job_id)

    def _read(self, read: Callable[[str], Any], job_id: str) -> None:
        since = self.history.known(job_id)
        self._remember(read(job_id), since=since)

    def _list(self, client: Client, own: str, newest: str) -> None:
        since = self.history.known(newest)
        page = client.list(filter={"external_id": own}, page_size=5)
        listed = {job.job_id: job for job in page.jobs}
        if newest in listed:
            self._remember(listed[newest], since=since)
        else:
            self.history.not_listed(newest)

    def _cancel(self, client: Client, job_id: str) -> None:
        self.history.cancelling(job_id)
        try:
            job = client.cancel(job_id)
        except grpc.RpcError as error:
            if outcome_of(error) == NOT_CANCELLABLE:
                self.history.refused(job_id)
            raise
        self.history.cancelled(job_id)
        self._remember(job, since=1)

    def _remember(self, job: Any, *, since: int) -> None:
        status = jobs_pb2.JobStatus.Name(job.status).removeprefix("JOB_STATUS_")
        self.history.read(job.job_id, job.version, status, since=since)

    def rate(self, began: float, ended: float) -> float:
        """Calls answered OK in a second, between two moments of the monotonic clock."""
        return sum(began <= moment < ended for moment in self.succeeded) / (ended - began)

    def measure(self, seconds: float) -> float:
        """Watch for these seconds: calls answered OK in each."""
        began = time.monotonic()
        wait_until(lambda: time.monotonic() >= began + seconds, seconds + 5, "a window to measure")
        return self.rate(began, began + seconds)

    def until_calls_succeed(self, since: float) -> float:
        """Wait for a create that began after this moment to be acknowledged; the seconds in between."""
        wait_until(lambda: self.last_began > since, RECOVERY_SECONDS, f"recovery: {self.outcomes}")
        return self.last_acknowledged - since

    def require_outcomes(self, *also: str) -> None:
        """AssertionError where a caller was answered anything but OK, an absent database, or one of these."""
        assert set(self.outcomes) <= {"OK", DATABASE_AWAY, NOT_CANCELLABLE, *also}, self.outcomes


@dataclass(frozen=True, slots=True)
class Figures:
    """What a fault did to the callers. Rates: calls answered OK in a second. NaN where not measured."""

    fault: str
    verdict: Verdict
    recovered: float
    before: float
    after: float
    slowest: float

    def __str__(self) -> str:
        return (
            f"{self.fault}: {self.verdict.acknowledged} acknowledged, {self.verdict.lost} lost,"
            f" {self.verdict.doubled} doubled; calls succeed again after {self.recovered:.2f} s;"
            f" {self.after:.0f} calls/s after {self.before:.0f} ({self.after / self.before:.0%});"
            f" slowest call {self.slowest:.2f} s"
        )


_SESSIONS = """
SELECT count(*), count(*) FILTER (WHERE state IS DISTINCT FROM 'idle') FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'jobs-service'
"""


def sessions(url: str) -> tuple[int, int]:
    """How many sessions services have in this database, and how many of them are not idle."""
    with connect(url) as sql:
        row = sql.execute(_SESSIONS).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def backends(url: str) -> set[int]:
    """The process ids of those sessions."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    with connect(url) as sql:
        return {row[0] for row in sql.execute(query, ("jobs-service",))}


def require_clean_pool(url: str, *, services: int = 1) -> None:
    """AssertionError unless the services come to rest with no transaction open and no session too many."""
    wait_until(lambda: sessions(url)[1] == 0, 15, "every session is idle")
    wait_until(lambda: sessions(url)[0] <= services * POOL_SIZE, 15, f"a full pool: {sessions(url)}")


def require_no_sessions(url: str) -> None:
    """AssertionError unless the services that have ended leave no session behind."""
    wait_until(lambda: sessions(url)[0] == 0, 15, "sessions end with their service")


@dataclass(frozen=True, slots=True)
class Replicas:
    """Two services on one database, callers on each of them, and one history of it all."""

    user: User
    dataset_id: int
    services: list[ServiceProcess]
    loads: list[RecordedLoad]
    history: History


@contextmanager
def two_replicas(
    url: str, folder: Path, settings: Sequence[Settings], *, token_for: Callable[[str], str] | None = None
) -> Iterator[Replicas]:
    """Two services with these settings; in the end everything is held against the history."""
    user, dataset_id = writer_of_a_dataset(url)
    history, token = History(), token_for(user.soeid) if token_for else None
    with serving(folder, settings[0]) as first, serving(folder, settings[1]) as second:
        services = [first, second]
        loads = [
            RecordedLoad(
                service.target, user, dataset_id, callers=CREATORS // 2, token=token, history=history
            )
            for service in services
        ]
        with loads[0], loads[1]:
            yield Replicas(user, dataset_id, services, loads, history)
        history.check(url).require()
        for load in loads:
            load.require_outcomes()
        require_clean_pool(url, services=2)
        assert [service.stop() for service in services] == [0, 0]
    require_no_sessions(url)


def health(target: str, name: str = "") -> str:
    """What the service says of itself."""
    return ask_health(target, name, seconds=5)


def wait_for_health(target: str, answer: str) -> None:
    """Wait until the service as a whole says this; it lives all the time."""
    wait_until(lambda: health(target) == answer, 30, answer)
    assert health(target, "liveness") == "SERVING"
    assert health(target, "jobs.v1.JobsService") == answer


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def writer_of_a_dataset(url: str) -> tuple[User, int]:
    """A user and the data set that it may write."""
    world = World(url)
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    world.close()
    return user, dataset


def jobs_there(url: str) -> int:
    """How many jobs there are."""
    with connect(url) as sql:
        row = sql.execute("SELECT count(*) FROM jobs").fetchone()
    assert row is not None
    return int(row[0])
