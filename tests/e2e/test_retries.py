"""The service config at work in real clients: reads outlive the service, writes are never sent twice."""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.clients import AnyClient, CallRefused, Json, NodeClient, PythonStubs, node_modules
from tests.e2e.faults import free_port, health, jobs_there, writer_of_a_dataset
from tests.e2e.load import Settings, channel_to, serving
from tests.support.client import Client
from tests.support.postgres import PostgresServer, connect
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import KEY

CONFIG = (resources.files("jobs.v1") / "service_config.json").read_text()
NO_WRITES = "LOCK TABLE job_events IN SHARE MODE"
MakeClient = Callable[[str, str], AnyClient]


def python_client(target: str, config: str) -> AnyClient:
    """Our stubs on a channel with this service config."""
    own = ("grpc.use_local_subchannel_pool", 1)
    return PythonStubs(target, ("grpc.service_config", config), own, ("grpc.max_reconnect_backoff_ms", 500))


def node_client(target: str, config: str) -> AnyClient:
    """grpc-js with this service config."""
    return NodeClient(target, node_modules(), config)


@pytest.fixture(params=[python_client, node_client])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """Each make of client that retries by the service config."""
    made: MakeClient = request.param
    if made is node_client:
        node_modules()
    return made


class Place:
    """A database, a port and a caller: where a service can be started again and again."""

    def __init__(self, postgres: PostgresServer, folder: Path, **settings: str) -> None:
        self.url = postgres.new_database()
        self.target = f"127.0.0.1:{free_port()}"
        user, self.dataset = writer_of_a_dataset(self.url)
        self.token = make_token(KEY, user.soeid)
        self.headers = {"authorization": f"Bearer {self.token}"}
        self._folder = folder
        own = {"JOBS_LISTEN": self.target, "JOBS_LOCK_SECONDS": "20", "JOBS_BATCH_SECONDS": "20"}
        self._settings: Settings = service_settings(self.url, folder) | own | settings

    @contextmanager
    def serving(self) -> Iterator[ServiceProcess]:
        """A service in this place."""
        with serving(self._folder, self._settings) as service:
            wait_until(lambda: health(self.target) == "SERVING", 30, "ready")
            yield service

    def create(self, client: AnyClient) -> Json:
        """Create a job without a request id."""
        request = {
            "datasetId": str(self.dataset),
            "runType": "RUN_TYPE_IMPORT",
            "runParameters": {"file_path": "a.csv"},
        }
        answer = client.call("CreateJob", request, self.headers)
        job: Json = answer["job"]
        return job

    def get(self, client: AnyClient, job_id: str) -> Json:
        """Read a job."""
        answer = client.call("GetJob", {"jobId": job_id}, self.headers)
        job: Json = answer["job"]
        return job

    def jobs(self) -> int:
        """How many jobs there are."""
        return jobs_there(self.url)

    @contextmanager
    def blocked_by(self, lock: LiteralString = NO_WRITES) -> Iterator[psycopg.Connection]:
        """Hold the lock until the block ends; yields the connection that holds it."""
        with connect(self.url) as sql:
            sql.execute("BEGIN")
            sql.execute(lock)
            yield sql
            sql.execute("COMMIT")

    def blocked(self, by: psycopg.Connection) -> bool:
        """Whether somebody waits for this connection."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        with connect(self.url) as sql:
            row = sql.execute(query, (by.info.backend_pid,)).fetchone()
        return row is not None and row[0] > 0


@contextmanager
def started(call: Callable[[], Json]) -> Iterator["Future[Json]"]:
    """A call that is in progress while the block runs."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(call)


def test_reads_do_not_notice_that_the_service_is_killed_and_comes_back(
    postgres_18: PostgresServer, tmp_path: Path, make_client: MakeClient
) -> None:
    place = Place(postgres_18, tmp_path)
    client = make_client(place.target, CONFIG)
    with place.serving() as service:
        job_id = place.create(client)["jobId"]
        with (
            place.blocked_by("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE") as block,
            started(lambda: place.get(client, job_id)) as reading,
        ):
            wait_until(lambda: place.blocked(block), 20, "the read is being done")
            service.kill()
            block.execute("COMMIT")
            with place.serving() as again:
                assert reading.result(60)["jobId"] == job_id
                # And one more on the connection that is there by now.
                assert place.get(client, job_id)["jobId"] == job_id
                assert again.stop() == 0
    client.close()


def test_a_create_whose_outcome_is_unknown_is_not_sent_again(
    postgres_18: PostgresServer, tmp_path: Path, make_client: MakeClient
) -> None:
    place = Place(postgres_18, tmp_path)
    client = make_client(place.target, CONFIG)
    with place.serving() as service:
        job_id = place.create(client)["jobId"]
        with place.blocked_by() as block, started(lambda: place.create(client)) as creating:
            wait_until(lambda: place.blocked(block), 20, "the create is being done")
            service.kill()
            with pytest.raises(CallRefused) as refused:
                creating.result(30)
            assert refused.value.refusal.code == "UNAVAILABLE"
    with place.serving() as service:
        # The same client is served again, and by now has nothing more to send.
        assert place.get(client, job_id)["jobId"] == job_id
        creates = [line for line in service.lines("call") if line["method"].endswith("CreateJob")]
        assert creates == []
        client.close()
        assert service.stop() == 0
    # The one before; of the other nothing was committed.
    assert place.jobs() == 1


@pytest.mark.parametrize("rpc", ["GetJob", "CreateJob"])
def test_a_refusal_for_overload_is_tried_again_when_the_service_says_and_done_once(
    postgres_18: PostgresServer, tmp_path: Path, make_client: MakeClient, rpc: str
) -> None:
    place = Place(postgres_18, tmp_path, JOBS_MAX_CALLS="1")
    # Soon by itself: what is waited is what the service asks for.
    impatient = json.loads(CONFIG)
    for entry in impatient["methodConfig"]:
        entry["retryPolicy"] |= {"initialBackoff": "0.01s", "maxBackoff": "0.02s"}
    client = make_client(place.target, json.dumps(impatient))
    with place.serving() as service, channel_to(place.target) as channel:
        other = Client(channel, place.token)
        job_id = other.create(dataset_id=place.dataset).job.job_id
        call = (lambda: place.get(client, job_id)) if rpc == "GetJob" else (lambda: place.create(client))
        with place.blocked_by() as block, started(lambda: _created(other, place)) as creating:
            wait_until(lambda: place.blocked(block), 20, "the only place is taken")
            with started(call) as calling:
                wait_until(lambda: _ended(service, rpc, "RESOURCE_EXHAUSTED"), 20, "refused")
                block.execute("COMMIT")
                assert calling.result(30)["jobId"]
            assert creating.result(30)
        client.close()
        assert service.stop() == 0
        refused = _ended(service, rpc, "RESOURCE_EXHAUSTED")
        served = _ended(service, rpc, "OK")
        times = [*refused, served[-1]]
        # Half of 0.5 s is the least that is asked for; a log line is written at the end of its call.
        assert all((later - earlier).total_seconds() > 0.2 for earlier, later in itertools.pairwise(times))
    assert place.jobs() == (2 if rpc == "GetJob" else 3)


def _created(client: Client, place: Place) -> Json:
    return {"jobId": client.create(dataset_id=place.dataset, request_id=str(uuid.uuid4())).job.job_id}


def _ended(service: ServiceProcess, rpc: str, code: str) -> list[datetime]:
    """When the calls ended that ended so."""
    lines = [line for line in service.lines("call") if line["method"].endswith(f"/{rpc}")]
    return [datetime.fromisoformat(line["time"]) for line in lines if line["code"] == code]


def test_a_create_whose_answer_is_too_large_for_the_client_is_not_sent_again(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    place = Place(postgres_18, tmp_path)
    client = PythonStubs(
        place.target, ("grpc.service_config", CONFIG), ("grpc.max_receive_message_length", 50)
    )
    with place.serving() as service:
        with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
            place.create(client)
        # Later than the longest time after which it would be tried again for the first time.
        until = time.monotonic() + 2
        wait_until(lambda: time.monotonic() > until, 5, "that time")
        client.close()
        assert service.stop() == 0
    assert place.jobs() == 1
