"""A primary and a synchronous standby, one of which goes away: nothing that was acknowledged is lost."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs_service.storage import schema
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import health, wait_for_health, writer_of_a_dataset
from tests.e2e.load import Load, channel_to, lost_and_doubled, serving
from tests.support.client import Client
from tests.support.postgres import open_database
from tests.support.service import wait_until
from tests.support.standby import Pair, running_pair
from tests.support.world import KEY

JOBS_FOR_A_RATE = 300
# A connection for each of the batches, the lists, health and upkeep (opening.py).
POOL = 17

OF_SERVICE = """SELECT count(*), count(*) FILTER (WHERE wait_event = 'SyncRep')
                  FROM pg_stat_activity WHERE application_name = 'jobs-service'"""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two servers of the test's own, with the schema."""
    with running_pair() as running:
        database = open_database(running.url)
        schema.migrate(database.engine)
        database.close()
        yield running


def rate(load: Load) -> float:
    """Jobs a second, now."""
    began = time.monotonic()
    load.wait_for_more(JOBS_FOR_A_RATE)
    return JOBS_FOR_A_RATE / (time.monotonic() - began)


def fail_over(pair: Pair, load: Load) -> tuple[float, float]:
    """kill -9 of the primary, and promote the standby.

    Returns the seconds until a create was acknowledged that began after the kill, and from the promotion on.
    """
    pair.primary.signal(signal.SIGKILL)
    killed = time.monotonic()
    pair.fail_over()
    promoted = time.monotonic()
    wait_until(lambda: load.last_began > killed, 60, f"calls succeed again: {load.outcomes}")
    return load.last_acknowledged - killed, load.last_acknowledged - promoted


@pytest.mark.long
def test_failovers_lose_and_double_nothing_and_calls_succeed_again_by_themselves(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user, dataset_id = writer_of_a_dataset(pair.primary_url())
    lines = []
    with serving(tmp_path, service_settings(pair.url, tmp_path)) as service:
        with Load(service.target, user, dataset_id) as load:
            for _ in range(3):
                before = rate(load)
                outage, after_promotion = fail_over(pair, load)
                after = rate(load)
                lines.append(
                    f"{outage:.2f} s ({after_promotion:.2f} s after the promotion),"
                    f" {before:.0f} creates/s before, {after:.0f} after"
                )
                # Under load: the old primary's address is a standby's from now on.
                pair.rebuild_standby()
                load.wait_for_more()
        wait_for_health(service.target, "SERVING")
        lost, doubled = lost_and_doubled(pair.primary_url(), load.acknowledged)
        with capsys.disabled():
            print(f"\nfailovers: {len(load.acknowledged)} acknowledged, {lost} lost, {doubled} doubled")
            print(*lines, f"slowest call {load.slowest:.2f} s, {dict(load.outcomes)}", sep="\n")
        load.check(pair.primary_url())
        assert _connections_to(pair) <= POOL
        assert service.stop() == 0


def _connections_to(pair: Pair) -> int:
    with pair.primary.connect("jobs") as sql:
        row = sql.execute(OF_SERVICE.encode()).fetchone()
    assert row is not None
    return int(row[0])


class Observer:
    """Reads a job and asks for health again and again, and counts the service's connections."""

    def __init__(self, pair: Pair, client: Client, job_id: str, target: str) -> None:
        self.reads = 0
        self.slowest_read = 0.0
        self.most_connections = self.most_waiting = 0
        self.ill: list[str] = []
        self._pair, self._client, self._job_id, self._target = pair, client, job_id, target
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until told to stop."""
        with self._pair.primary.connect("jobs") as sql:
            while not self._stopping.wait(0.05):
                began = time.monotonic()
                self._client.get(self._job_id)
                self.slowest_read = max(self.slowest_read, time.monotonic() - began)
                self.reads += 1
                if (answer := health(self._target)) != "SERVING":
                    self.ill.append(answer)
                [(connections, waiting)] = sql.execute(OF_SERVICE.encode()).fetchall()
                self.most_connections = max(self.most_connections, connections)
                self.most_waiting = max(self.most_waiting, waiting)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during the block."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(30)


@pytest.mark.long
def test_a_standby_that_is_away_stops_writes_alone_and_they_go_on_when_it_is_back(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user, dataset_id = writer_of_a_dataset(pair.primary_url())
    settings = service_settings(pair.url, tmp_path) | {"JOBS_BATCH_SECONDS": "1"}
    with serving(tmp_path, settings) as service, channel_to(service.target) as channel:
        client = Client(channel, make_token(KEY, user.soeid))
        observer = Observer(pair, client, client.create(dataset_id=dataset_id).job.job_id, service.target)
        with Load(service.target, user, dataset_id) as load, observer.watching():
            load.wait_for_more()
            pair.standby.signal(signal.SIGSTOP)
            refusals = load.outcomes["UNAVAILABLE DATABASE_UNAVAILABLE"]
            # Batches have been given up one after the other by then, each of whose commits would wait on.
            goal = refusals + 5 * 8
            wait_until(
                lambda: load.outcomes["UNAVAILABLE DATABASE_UNAVAILABLE"] >= goal, 90, "batches are given up"
            )
            there = len(load.acknowledged)
            pair.standby.signal(signal.SIGCONT)
            back = time.monotonic()
            wait_until(lambda: len(load.acknowledged) > there, 30, "calls succeed again")
            recovery = time.monotonic() - back
            load.wait_for_more()
        with capsys.disabled():
            print(
                f"\nstandby away: calls succeed {recovery:.2f} s after it is back;"
                f" {observer.reads} reads meanwhile, slowest {observer.slowest_read:.2f} s;"
                f" at most {observer.most_connections} connections, {observer.most_waiting} of them"
                f" waiting in COMMIT; {dict(load.outcomes)}"
            )
        load.check(pair.primary_url())
        assert observer.ill == []
        # One batch of creates at a time and the upkeep, and what was given up may just be ending.
        assert observer.most_waiting <= 4
        assert observer.most_connections <= POOL
        assert service.stop() == 0
