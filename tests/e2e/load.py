"""Services, Postgres processes and callers that go on whatever happens, for the tests beside it."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc

from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres
from jobs_service.transport.tokens import make_token
from tests.support.client import Client, RichError, rich_error
from tests.support.postgres import connect
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import KEY, SECRET, User

Settings = dict[str, str]

DATABASE_AWAY = "UNAVAILABLE DATABASE_UNAVAILABLE"
SHUTTING_DOWN = "UNAVAILABLE SHUTTING_DOWN"
NO_SERVICE = "UNAVAILABLE without details"
# A caller's own deadline, where nobody has answered.
NO_ANSWER = "DEADLINE_EXCEEDED without details"
# What gRPC answers when a server stops to calls that it has received and not yet given to a handler:
# https://github.com/grpc/grpc/issues/41785
NEVER_ACCEPTED = "CANCELLED without details: CANCELLED"
CREATORS = 8
SLOWEST_SECONDS = 15
# Of the demo that fills an empty embedded database; alice writes data set 1.
ALICE = User("al00001", 3)


def outcome_of(error: Any) -> str:
    """The code and the reason that a refused call answered; the transport's own refusals have no details."""
    if error.code() is grpc.StatusCode.UNAVAILABLE and not _has_details(error):
        return NO_SERVICE
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not _has_details(error):
        return NO_ANSWER
    if not _has_details(error):
        return f"{error.code().name} without details: {error.details()}"
    found: RichError = rich_error(error)
    return f"{found.code} {found.reason}"


def _has_details(error: Any) -> bool:
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


def channel_to(target: str) -> grpc.Channel:
    """A connection of its own that is soon back when the service is."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.insecure_channel(target, options=options)


class Load:
    """Callers that create jobs, read them back and list them until told to stop.

    A create that fails is sent again with the same request id until it is acknowledged.
    """

    def __init__(
        self, target: str, user: User, dataset_id: int, *, callers: int = CREATORS, token: str | None = None
    ) -> None:
        """token: sent instead of the one that the user would be given now."""
        self.acknowledged: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        # When each call that was answered OK was.
        self.succeeded: list[float] = []
        # Of the create that was acknowledged last: when it was sent first, and when it was answered.
        self.last_began = self.last_acknowledged = 0.0
        self._dataset_id = dataset_id
        self._stopping = threading.Event()
        self._channels = [channel_to(target) for _ in range(callers)]
        token = token or make_token(KEY, user.soeid)
        self._threads = [
            threading.Thread(target=self._run, args=(Client(channel, token),)) for channel in self._channels
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Return when every caller has ended; AssertionError where one does not."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        for channel in self._channels:
            channel.close()
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    def wait_for_more(self, jobs: int = 50) -> None:
        """Wait until this many more jobs are acknowledged."""
        goal = len(self.acknowledged) + jobs
        wait_until(lambda: len(self.acknowledged) >= goal, 30, f"{jobs} more jobs: {self.outcomes}")

    def _run(self, client: Client) -> None:
        while not self._stopping.is_set():
            request_id, began = str(uuid.uuid4()), time.monotonic()
            made = self._try(client.create, dataset_id=self._dataset_id, request_id=request_id)
            if made is not None:
                self.acknowledged[request_id] = made.job.job_id
                self.last_acknowledged, self.last_began = time.monotonic(), began
                self._and_then(client, made.job.job_id)

    def _and_then(self, client: Client, job_id: str) -> None:
        """What a caller does with its job."""
        self._try(client.status, job_id)
        self._try(client.list, page_size=1)

    def _try(self, call: Callable[..., Any], *values: Any, accepted: str = "OK", **fields: Any) -> Any:
        """Call again and again until it is OK or the outcome accepted; None when told to stop before."""
        while True:
            answer, began = None, time.monotonic()
            try:
                answer = call(*values, **fields)
            except grpc.RpcError as error:
                outcome = outcome_of(error)
            else:
                outcome = "OK"
                self.succeeded.append(time.monotonic())
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.outcomes[outcome] += 1
            if outcome in {"OK", accepted} or self._stopping.wait(0.02):
                return answer

    def check(self, url: str, *, also: set[str] | None = None) -> None:
        """Nothing that was acknowledged is lost, nothing is doubled, and nobody saw another error."""
        assert set(self.outcomes) <= {"OK", DATABASE_AWAY} | (also or set()), self.outcomes
        assert self.slowest < SLOWEST_SECONDS
        lost, doubled = lost_and_doubled(url, self.acknowledged)
        assert (lost, doubled) == (0, 0)


def lost_and_doubled(url: str, acknowledged: dict[str, str]) -> tuple[int, int]:
    """How many acknowledged jobs are missing, and how many rows or histories are there twice."""
    with connect(url) as sql:
        rows = sql.execute("SELECT request_id::text, job_id::text FROM jobs").fetchall()
        created = sql.execute("SELECT job_id::text FROM job_events WHERE type = 'CREATED'").fetchall()
    there: dict[str, str] = dict(rows)
    lost = sum(there.get(request_id) != job_id for request_id, job_id in acknowledged.items())
    doubled = len(rows) - len(there) + abs(len(created) - len(rows))
    return lost, doubled + len(created) - len(set(created))


def embedded_settings(folder: Path, data: Path | None = None) -> Settings:
    """Settings for a service with an embedded Postgres that takes the tests' tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    key_file = folder / "jwt-secret"
    key_file.write_text(SECRET)
    return {"JOBS_JWT_KEY_FILE": str(key_file), "JOBS_DATA_DIR": str(data or folder / "data")}


def embedded_url(settings: Settings) -> str:
    """The URL of a service's embedded Postgres."""
    return EmbeddedPostgres(DataFolder(Path(settings["JOBS_DATA_DIR"])), pg_bin=None).url()


@contextmanager
def serving(folder: Path, settings: Settings, *, prefix: Sequence[str] = ()) -> Iterator[ServiceProcess]:
    """A service that is killed at the end if it has not ended by then."""
    # A folder for each start: the service is known to serve by its log.
    service = ServiceProcess(folder / f"service-{uuid.uuid4().hex[:8]}", settings, prefix=prefix)
    try:
        yield service.started()
    finally:
        if service.process.poll() is None:
            service.kill()


def postmaster(settings: Settings) -> int:
    """The process id of the embedded Postgres."""
    return int((Path(settings["JOBS_DATA_DIR"]) / "postgres/postmaster.pid").read_text().split()[0])


def family(pid: int) -> set[int]:
    """The process and its children."""
    return {pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}


def running(pids: set[int]) -> set[int]:
    """Which of these processes run; a zombie does not."""
    return {pid for pid in pids if _state(pid) not in {"", "Z"}}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def postgres_log(settings: Settings) -> str:
    """What the embedded Postgres has logged."""
    logs = Path(settings["JOBS_DATA_DIR"]).glob("postgres/log/*.log")
    return "".join(path.read_text() for path in logs)
