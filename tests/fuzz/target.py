"""The service that is fuzzed, and what must be true of it afterwards, whatever was sent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.client import Client
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import World

MEBIBYTE = 2**20
MORE_MEMORY = 64 * MEBIBYTE
"""What the service may grow by after it was warm: caches fill, heaps break up."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the service holds: memory in bytes, open files, connections to the database, jobs and events."""

    memory: int
    files: int
    database_connections: int
    rows: tuple[int, int]


class Target:
    """A service, and its world."""

    def __init__(self, world: World, service: ServiceProcess) -> None:
        self.world = world
        self.service = service
        self._proc = Path(f"/proc/{service.process.pid}")
        self._health: Any = health_pb2_grpc.HealthStub(world.channel())

    def holdings(self) -> Holdings:
        """What it holds now."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobs-service'"
        row = self.world.sql.execute(query + " AND datname = current_database()").fetchone()
        assert row is not None
        files = len(list((self._proc / "fd").iterdir()))
        return Holdings(self._kilobytes("VmRSS"), files, int(row[0]), self.world.counts())

    def most_memory(self) -> int:
        """The most memory that it ever held, in bytes."""
        return self._kilobytes("VmHWM")

    def _kilobytes(self, name: str) -> int:
        """A number of the kernel's about the process, in bytes."""
        status = (self._proc / "status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def answers(self, client: Client) -> None:
        """Check that it lives, is healthy, and serves a good call."""
        assert self.service.process.poll() is None, self.service.log_file.read_text()[-5000:]
        for name in ("", "liveness"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert self._health.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        client.list(page_size=1)

    def log_since(self, place: int) -> Iterator[str]:
        """The lines of its log after this many bytes; AssertionError for one that shows a fault."""
        with self.service.log_file.open("rb") as file:
            file.seek(place)
            whole = file.read().rpartition(b"\n")[0].decode()
        for line in whole.splitlines():
            # Every line is one of ours: what libraries write by themselves may hold what callers sent.
            fields = json.loads(line)
            assert fields["level"] in {"DEBUG", "INFO", "WARNING"}, line
            assert "exception" not in fields, line
            assert fields.get("code") not in {"INTERNAL", "UNKNOWN"}, line
            yield line


@contextmanager
def unharmed(target: Target, *, rows_may_grow: bool = False) -> Iterator[None]:
    """Whatever the block sends: the service lives, serves, logs no fault, and holds no more than before."""
    client = target.world.client(target.world.user())
    target.answers(client)
    before, place = target.holdings(), target.service.log_file.stat().st_size
    yield
    target.answers(client)
    for _ in target.log_since(place):
        pass
    after = wait_until(lambda: _no_more(target, before), 30, "the connections are given back")
    assert after.memory < before.memory + MORE_MEMORY, (before, after)
    assert rows_may_grow or after.rows == before.rows


def _no_more(target: Target, before: Holdings) -> Holdings | None:
    """What is held now, None where it is more than before; the pool may have grown to its size."""
    now = target.holdings()
    grown = max(0, now.database_connections - before.database_connections)
    return now if now.files <= before.files + grown + 4 and now.database_connections <= 40 else None
