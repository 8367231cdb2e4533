"""Workers that go away at any moment of a ClaimJobs: what was claimed for them goes back unspent.

The caller speaks HTTP/2 by itself, and so knows of each byte that reached it, after its own reset too.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.model.caller import Level
from jobs_service.transport.tokens import make_token
from tests.bench.http2 import ACK, DATA, PING, RST_STREAM, SETTINGS, Connection, frame, header_block, message
from tests.conftest import service_settings
from tests.e2e.load import serving
from tests.support.postgres import PostgresServer
from tests.support.service import wait_until
from tests.support.world import KEY, World

ROUNDS = 400
JOBS = 60
LONGEST_SECONDS = 0.03
_CANCEL = struct.pack(">L", 8)


class Leaver:
    """Claims, and resets the call after a while. known: every job that an answer told of, late or not."""

    def __init__(self, target: str, soeid: str) -> None:
        self.known: set[str] = set()
        self.answered = 0
        self._connection = Connection(target)
        self._block = header_block(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/jobs.v1.WorkersService/ClaimJobs"),
                (":authority", target),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("authorization", f"Bearer {make_token(KEY, soeid)}"),
            ]
        )
        self._lock = threading.Lock()
        self._bodies: dict[int, bytes] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._connection.flush()
        self._thread.start()

    def claim_and_leave(self, request: workers_pb2.ClaimJobsRequest, seconds: float) -> None:
        with self._lock:
            stream = self._connection.call(self._block, message(request.SerializeToString()))
            self._connection.flush()
        time.sleep(seconds)
        self._send(frame(RST_STREAM, 0, stream, _CANCEL))

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._connection.socket.sendall(data)

    def _read(self) -> None:
        rest = b""
        # Until close: it may be silent for long.
        self._connection.socket.settimeout(None)
        while data := self._connection.socket.recv(65536):
            rest += data
            while len(rest) >= 9 and len(rest) >= (end := 9 + int.from_bytes(rest[:3], "big")):
                self._take(rest[3], rest[4], int.from_bytes(rest[5:9], "big"), rest[9:end])
                rest = rest[end:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, payload))
        elif kind == DATA:
            body = self._bodies[stream] = self._bodies.get(stream, b"") + payload
            if len(body) >= 5 and len(body) == 5 + int.from_bytes(body[1:5], "big"):
                answer = workers_pb2.ClaimJobsResponse.FromString(body[5:])
                self.answered += 1
                self.known.update(claim.job.job_id for claim in answer.claims)

    def close(self) -> None:
        self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()


@pytest.fixture
def world(postgres_18: PostgresServer, tmp_path: Path) -> Iterator[World]:
    url = postgres_18.new_database()
    with serving(tmp_path, service_settings(url, tmp_path)) as service:
        world = World(url, service.target)
        yield world
        world.close()
        assert service.stop() == 0


def jobs(world: World, status: str) -> set[str]:
    rows = world.sql.execute("SELECT job_id::text FROM jobs WHERE status = %s", (status,))
    return {row[0] for row in rows}


@pytest.mark.parametrize("waits", [False, True], ids=["that answer at once", "that wait"])
def test_claims_of_callers_that_leave_at_any_moment_go_back_unspent(
    world: World, waits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    dataset = world.dataset()
    maker = world.client(world.user(grants={dataset: Level.WRITE}))
    worker = world.service_user()
    request = workers_pb2.ClaimJobsRequest(
        worker_id="leaver", run_types=[jobs_pb2.RUN_TYPE_IMPORT], max_jobs=3
    )
    request.lease_duration.FromTimedelta(timedelta(hours=1))
    if waits:
        request.wait_timeout.FromTimedelta(timedelta(seconds=60))
    leaver = Leaver(world.target, worker.soeid)
    created = 0
    for number in range(ROUNDS):
        # Those that wait find nothing, and get what is made while they leave.
        if waits or created < JOBS:
            maker.create(dataset_id=dataset)
            created += 1
        leaver.claim_and_leave(request, chance.uniform(0, LONGEST_SECONDS))
        if number % 20 == 19:
            taker = world.worker(user=worker)
            for claim in taker.claim(max_jobs=100).claims:
                leaver.known.discard(claim.job.job_id)
                taker.complete(claim)
    wait_until(lambda: jobs(world, "RUNNING") <= leaver.known, 20, f"no job is lost (seed {seed})")
    pending = jobs(world, "PENDING")
    spent = world.sql.execute("SELECT count(*) FROM jobs WHERE status = 'PENDING' AND attempt > 0").fetchone()
    assert spent == (0,), f"seed {seed}"
    assert len(pending) + len(jobs(world, "RUNNING")) + len(jobs(world, "COMPLETED")) == created
    row = world.sql.execute("SELECT count(*) FROM job_attempts WHERE outcome = 'RELEASED'").fetchone()
    assert row is not None
    assert row[0] > 0, "nobody left at the right moment"
    with capsys.disabled():
        print(f"\n{ROUNDS} claims left: {leaver.answered} were answered before, {row[0]} jobs went back")
    leaver.close()
