"""What the database holds of a job and of the claims on it, and leases made old."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.conftest import service_settings
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import World

_TABLES = ("jobs", "job_leases", "job_attempts", "job_events", "job_queue")
# What duties may change at any time, without anybody having called.
_BY_DUTIES = ("ready", "held")

_EXPIRE = """
UPDATE job_leases
   SET lease_expire_time = now() - interval '1 second', lease_duration = interval '0',
       run_deadline = CASE WHEN %(timed_out)s THEN now() - interval '1 second' ELSE run_deadline END
 WHERE job_id = ANY(%(job_ids)s::uuid[])
"""


def rows_of(sql: psycopg.Connection, job_id: str) -> dict[str, list[Any]]:
    """Every row about the job, by table."""
    found = {}
    for table in _TABLES:
        query = f"SELECT to_jsonb(t) - %s::text[] FROM {table} t WHERE job_id = %s ORDER BY to_jsonb(t)::text"
        found[table] = [row[0] for row in sql.execute(query.encode(), (list(_BY_DUTIES), job_id))]
    return found


def age_leases(sql: psycopg.Connection, job_ids: Collection[str], *, timed_out: bool = False) -> None:
    """Make the leases so old that a sweep may take them; timed_out: the attempts have had their time."""
    sql.execute(_EXPIRE, {"timed_out": timed_out, "job_ids": list(job_ids)})


def expire(sql: psycopg.Connection, *job_ids: str, timed_out: bool = False) -> None:
    """Age the leases, and wait until the sweep of a running service has taken the jobs back."""
    query = "SELECT count(*) FROM job_leases WHERE job_id = ANY(%s::uuid[])"
    age_leases(sql, job_ids, timed_out=timed_out)
    wait_until(lambda: one(sql, query, list(job_ids)) == 0, 20, "the sweep")


def one(sql: psycopg.Connection, query: str, *values: Any) -> Any:
    """The only column of the only row."""
    row = sql.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]


def types_of_events(sql: psycopg.Connection, job_id: str) -> list[str]:
    """What happened to a job, oldest first."""
    query = "SELECT type FROM job_events WHERE job_id = %s ORDER BY event_id"
    return [row[0] for row in sql.execute(query, (job_id,))]


def empty_queue(sql: psycopg.Connection) -> None:
    """Leave no job to claim: what tests before have left waiting is nobody's any more."""
    sql.execute("DELETE FROM job_queue")


@contextmanager
def worlds_of_replicas(url: str, folder: Path, number: int = 2) -> Iterator[list[World]]:
    """Services on one database, a world of each; patient with locks, as machines may be slow."""
    services: list[ServiceProcess] = []
    worlds: list[World] = []
    try:
        for count in range(number):
            own = folder / f"replica-{count}"
            own.mkdir()
            settings = service_settings(url, own) | {"JOBS_LOCK_SECONDS": "8"}
            services.append(ServiceProcess(own, settings))
        worlds = [World(url, service.started().target) for service in services]
        yield worlds
    finally:
        for world in worlds:
            world.close()
        assert [service.stop() for service in services] == [0] * len(services)
