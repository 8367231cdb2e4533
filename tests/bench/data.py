"""The data that the service is measured with: users of every kind, and many jobs of others."""

import json
from dataclasses import dataclass

import psycopg

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.transport.tokens import make_token
from tests.support.world import KEY, User, World

DATASETS = 300
OWNERS = 200
_PLACEHOLDER = "00000000-0000-4000-8000-000000000000"
# A user's ids are spread over the table as in production: newest jobs first in no data set of its own.
_FILL = """
INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority, create_time,
                  end_time, payload_bytes, run_parameters)
     SELECT gen_random_uuid(), 'IMPORT', CASE WHEN n %% 100 = 0 THEN 'PENDING' ELSE 'COMPLETED' END,
            (%(datasets)s::bigint[])[1 + (n * 7919) %% cardinality(%(datasets)s)],
            (%(owners)s::bigint[])[1 + n %% cardinality(%(owners)s)],
            (%(owners)s::bigint[])[1 + n %% cardinality(%(owners)s)],
            0, now() - (%(jobs)s - n) * interval '1 s', CASE WHEN n %% 100 <> 0 THEN now() END,
            length(%(parameters)s), %(parameters)s::jsonb
       FROM generate_series(1, %(jobs)s) AS n"""
_PENDING = """
INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes, run_parameters)
     SELECT gen_random_uuid(), 'IMPORT', %s, %s, %s, 0, 2, '{}' FROM generate_series(1, %s)
  RETURNING job_id::text"""
_PARAMETERS = '{"file_path": "landing/2026/11/customers.parquet", "format": "parquet", "header": true}'


@dataclass(frozen=True)
class Callers:
    """Tokens. writer: may write one data set, and read all."""

    writer: str
    admin: str
    owner: str
    reader_of_1: str
    reader_of_50: str
    reader_of_all: str
    stranger: str


class Data:
    """A database with this many jobs, and what is needed to call for them."""

    def __init__(self, url: str, jobs: int) -> None:
        world = World(url)
        self._sql: psycopg.Connection = world.sql
        self._world = world
        datasets = [world.dataset() for _ in range(DATASETS)]
        owners = [world.user() for _ in range(OWNERS)]
        self._dataset = world.dataset()
        # Its jobs are few among the many, as a client's are.
        self._writer = _reader(world, datasets, {self._dataset: Level.WRITE})
        self.callers = Callers(
            writer=_token(self._writer),
            admin=_token(world.user(Role.ADMIN)),
            owner=_token(owners[0]),
            reader_of_1=_token(_reader(world, datasets[:1])),
            reader_of_50=_token(_reader(world, datasets[:50])),
            reader_of_all=_token(_reader(world, datasets)),
            stranger=_token(world.user()),
        )
        parameters = {
            "datasets": datasets,
            "owners": [owner.user_id for owner in owners],
            "jobs": jobs,
            "parameters": _PARAMETERS,
        }
        self._sql.execute(_FILL, parameters)
        self._sql.execute("VACUUM ANALYZE jobs")

    def job_ids(self, number: int) -> list[str]:
        """Return ids from all over the table, in no order."""
        some = "SELECT job_id::text FROM jobs ORDER BY md5(job_id::text) LIMIT %s"
        rows = self._sql.execute(some, (number,))
        return [row[0] for row in rows]

    def pending(self, number: int) -> list[str]:
        """Add jobs that can be cancelled; returns their ids."""
        user = self._writer.user_id
        rows = self._sql.execute(_PENDING, (self._dataset, user, user, number))
        return [row[0] for row in rows]

    def create_request(self) -> tuple[bytes, bytes]:
        """Return a CreateJob, and the part of it that is to be replaced by each call's request id."""
        request = jobs_pb2.CreateJobRequest(
            dataset_id=self._dataset,
            run_type=jobs_pb2.RUN_TYPE_IMPORT,
            description="Nightly customers",
            request_id=_PLACEHOLDER,
        )
        request.run_parameters.update(json.loads(_PARAMETERS))
        return request.SerializeToString(), _PLACEHOLDER.encode()

    def close(self) -> None:
        """Close the connections."""
        self._world.close()


def _reader(world: World, datasets: list[int], more: dict[int, Level] | None = None) -> User:
    user = world.user(grants=more)
    world.sql.execute(
        "INSERT INTO dataset_permissions SELECT %s, unnest(%s::bigint[]), 'read'",
        (user.user_id, datasets),
    )
    return user


def _token(user: User) -> str:
    return make_token(KEY, user.soeid)
