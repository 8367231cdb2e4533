"""Metrics and probes of the running service: true, there when it is in trouble, and nobody's secrets."""

import os
import re
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.storage import schema
from tests.e2e.demo import ALICE, BOB, EVE, PROGRAM, Demo
from tests.e2e.load import postmaster
from tests.support.client import Client, refused
from tests.support.scrape import probe, scrape
from tests.support.service import ServiceProcess, wait_until

LISTEN = {"JOBS_METRICS_LISTEN": "127.0.0.1:0"}
SERVICE = "jobs.v1.JobsService"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("measured"), **LISTEN) as running:
        yield running


@pytest.fixture
def channel(measured: Demo) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(measured.target) as channel:
        yield channel


def calls_ended(service: ServiceProcess, rpc: str, **labels: str) -> float:
    return scrape(service).value("jobs_calls_total", method=f"{SERVICE}/{rpc}", **labels)


def test_calls_are_counted_by_code_and_reason(measured: Demo, channel: grpc.Channel) -> None:
    service = measured.service
    before = scrape(service)
    Client(channel, measured.token(ALICE)).create()
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        Client(channel, measured.token(BOB)).create()
    with refused("UNAUTHENTICATED", "CREDENTIALS_MISSING"):
        Client(channel, None).create()
    method, count = f"{SERVICE}/CreateJob", "jobs_call_seconds_count"
    # The answer is sent before the call has ended.
    ended = before.value(count, method=method) + 3
    wait_until(lambda: scrape(service).value(count, method=method) == ended, 10, "three calls")
    after = scrape(service)
    for code, reason in (
        ("OK", ""),
        ("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"),
        ("UNAUTHENTICATED", "CREDENTIALS_MISSING"),
    ):
        labels = {"method": method, "code": code, "reason": reason}
        assert after.value("jobs_calls_total", **labels) == before.value("jobs_calls_total", **labels) + 1
    assert after.value("jobs_calls_in_progress") == 0


def test_jobs_are_shown_by_run_type_and_status(measured: Demo, channel: grpc.Channel) -> None:
    client, service = Client(channel, measured.token(ALICE)), measured.service
    client.cancel(client.create().job.job_id)
    client.create()

    def shown(status: str) -> float:
        return scrape(service).value("jobs_jobs", run_type="IMPORT", status=status)

    def there(status: str) -> int:
        with measured.sql() as sql:
            row = sql.execute(
                "SELECT count(*) FROM jobs WHERE run_type = 'IMPORT' AND status = %s", (status,)
            ).fetchone()
        assert row is not None
        return int(row[0])

    def is_right(status: str) -> bool:
        return shown(status) == there(status)

    for status in ("PENDING", "CANCELLED"):
        assert there(status) > 0
        wait_until(partial(is_right, status), 30, f"the number of {status}")
    assert scrape(service).value("jobs_oldest_pending_seconds") > 0


def test_release_and_schema_are_told(measured: Demo) -> None:
    told = scrape(measured.service)
    assert told.values("jobs_build_info", version="0.1.0", schema_revision=schema._revisions()[1]) == [1]
    assert told.values("jobs_ready") == [1]
    assert (probe(measured.service, "/ready"), probe(measured.service, "/live")) == (200, 200)
    assert told.value("process_resident_memory_bytes") > 0


def test_no_caller_adds_a_series_and_nobodys_secrets_are_in_one(
    measured: Demo, channel: grpc.Channel
) -> None:
    def calls(number: int) -> list[str]:
        """Some calls with values of their own; returns these."""
        mark = f"mark{number}"
        headers = (("x-correlation-id", f"{mark}-correlation"), ("x-on-behalf-of", f"zz{number:05}"))
        client = Client(channel, measured.token(ALICE))
        job = client.create(external_id=mark, description=mark, run_parameters={"file_path": mark}).job
        client.status(job.job_id)
        with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
            client.create(dataset_id=-number)
        with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
            client.call("ListJobs", jobs_pb2.ListJobsRequest(), metadata=headers)
        with refused("UNAUTHENTICATED", "CREDENTIALS_INVALID"):
            Client(channel, f"{mark}.token").list()
        with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
            Client(channel, measured.token(f"us{number:05}")).list()
        unknown: Any = channel.unary_unary(f"/jobs.v1.JobsService/{mark}")
        with pytest.raises(grpc.RpcError):
            unknown(b"", timeout=10)
        return [mark, job.job_id, f"us{number:05}", measured.token(f"us{number:05}")]

    secrets = [*calls(1), ALICE, BOB, EVE, PROGRAM, measured.token(ALICE)]
    before = scrape(measured.service)
    for number in range(2, 12):
        secrets += calls(number)
    after = scrape(measured.service)
    assert after.series() == before.series()
    assert [secret for secret in secrets if secret in after.text] == []
    # What looks like a job's or a correlation's id, whoever's it is.
    assert re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-", after.text) == []


def database_processes(demo: Demo) -> list[int]:
    with demo.sql() as sql:
        rows = sql.execute(
            """SELECT pid FROM pg_stat_activity
                WHERE application_name = 'jobs-service' AND pid <> pg_backend_pid()"""
        ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.long
def test_a_frozen_database_leaves_metrics_and_liveness_as_they_are(tmp_path: Path) -> None:
    with Demo(tmp_path, **LISTEN) as demo:
        wait_until(lambda: scrape(demo.service).values("jobs_jobs"), 20, "the first figures")
        with demo.sql() as sql:
            sql.execute(
                """INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority,
                                     payload_bytes, run_parameters)
                   SELECT gen_random_uuid(), 'IMPORT', 1, 1, 1, 0, 2, '{}' FROM generate_series(1, 100000)"""
            )
        pids = [postmaster(demo.settings), *database_processes(demo)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            # A scrape that asked the database anything would hang here.
            wait_until(lambda: probe(demo.service, "/ready") == 503, 30, "not ready")
            assert scrape(demo.service).values("jobs_ready") == [0]
            assert probe(demo.service, "/live") == 200
            wait_until(lambda: not scrape(demo.service).values("jobs_jobs"), 40, "old figures are gone")
            assert scrape(demo.service).value("jobs_counts_age_seconds") > 0
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: probe(demo.service, "/ready") == 200, 40, "ready again")
        wait_until(lambda: scrape(demo.service).values("jobs_jobs"), 40, "figures again")
        assert scrape(demo.service).value("jobs_duty_failures_total", duty="count_jobs") > 0
        assert len(demo.service.lines("a duty fails")) == 1


def test_an_overloaded_and_then_draining_service_still_tells(tmp_path: Path) -> None:
    settings = {
        "JOBS_LOCK_SECONDS": "60",
        "JOBS_BATCH_SECONDS": "60",
        "JOBS_MAX_WAITING": "2",
        "JOBS_DRAIN_SECONDS": "60",
    }
    with Demo(tmp_path, **settings, **LISTEN) as demo, grpc.insecure_channel(demo.target) as channel:
        client, service = Client(channel, demo.token(ALICE)), demo.service
        job_id = client.create().job.job_id
        with ThreadPoolExecutor(4) as threads, demo.sql() as other:
            with other.transaction():
                other.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (job_id,))
                cancels = [threads.submit(client.cancel, job_id)]
                wait_until(lambda: scrape(service).value("jobs_calls_in_progress") == 1, 20, "the first runs")
                wait_until(
                    lambda: scrape(service).value("jobs_waiting_calls", operation="cancel") == 0,
                    20,
                    "its batch",
                )
                cancels += [threads.submit(client.cancel, job_id) for _ in range(2)]
                wait_until(
                    lambda: scrape(service).value("jobs_waiting_calls", operation="cancel") == 2,
                    20,
                    "two wait",
                )
                with refused("RESOURCE_EXHAUSTED", "OVERLOADED"):
                    client.cancel(str(uuid.uuid4()))
                wait_until(
                    lambda: calls_ended(service, "CancelJob", reason="OVERLOADED") == 1, 10, "the refusal"
                )
                told = scrape(service)
                assert told.value("jobs_queue_refusals_total", operation="cancel") == 1
                assert told.value("jobs_pool_connections", state="used") >= 1
                assert probe(service, "/ready") == probe(service, "/live") == 200
                service.process.terminate()
                wait_until(lambda: probe(service, "/ready") == 503, 20, "not ready")
                assert probe(service, "/live") == 200
                assert scrape(service).values("jobs_ready") == [0]
            results = [cancel.exception(30) for cancel in cancels]
        assert sum(result is None for result in results) == 1
        assert service.process.wait(30) == 0
        assert probe(service, "/live") == 0


def test_without_the_setting_one_port_is_listened_on(demo: Demo) -> None:
    process = Path(f"/proc/{demo.service.process.pid}")
    own = {os.readlink(file) for file in (process / "fd").iterdir()}
    tables = ((process / "net" / table).read_text() for table in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
    listening = [line[1] for line in sockets if line[3] == "0A" and f"socket:[{line[9]}]" in own]
    assert [int(address.partition(":")[2], 16) for address in listening] == [
        int(demo.target.rpartition(":")[2])
    ]
