"""Users, data sets and permissions for tests, and what no RPC can do yet."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
import psycopg

from jobs_service.core.access_service import AccessService
from jobs_service.model.access import OPERATOR
from jobs_service.model.caller import Caller, Level, OnBehalf, Role
from jobs_service.model.job import JobStatus, RunType
from jobs_service.transport.tokens import TokenKey, make_token
from tests.support.client import Client, WorkerClient
from tests.support.postgres import connect, open_database

SECRET = "a-secret-for-tests-of-more-than-32-bytes"
KEY = TokenKey("HS256", SECRET.encode())

# All worlds of a run take from here, so that many can share a database and never see each other.
_numbers = itertools.count(10_000)


@dataclass(frozen=True, slots=True)
class User:
    """A user made for a test."""

    soeid: str
    user_id: int

    @property
    def caller(self) -> Caller:
        """The user calling for itself."""
        return Caller(self.soeid, self.user_id)

    def for_user(self, other: "User") -> Caller:
        """The user calling on behalf of another."""
        return Caller(self.soeid, self.user_id, OnBehalf(other.soeid, other.user_id))


class World:
    """Makes users and data sets in one database, and clients of the service on it."""

    def __init__(self, database_url: str, target: str | None = None) -> None:
        self.database_url = database_url
        self.database = open_database(database_url)
        self.access = AccessService(self.database).changes(by=OPERATOR)
        self.sql: psycopg.Connection = connect(database_url)
        self._target = target
        self._channels: list[grpc.Channel] = []

    def user(self, role: Role = Role.USER, grants: Mapping[int, Level] | None = None) -> User:
        """Add a user with these levels on data sets."""
        prefix = {Role.ADMIN: "ad", Role.SERVICE: "sv", Role.USER: "us"}[role]
        soeid = f"{prefix}{next(_numbers):05}"
        user = User(soeid, self.access.put_user(soeid, role).now.user_id)
        for dataset_id, level in (grants or {}).items():
            self.access.grant(soeid, dataset_id, level)
        return user

    def dataset(self) -> int:
        """Add a data set."""
        dataset_id = next(_numbers)
        self.access.put_dataset(dataset_id, f"data set {dataset_id}")
        return dataset_id

    @property
    def target(self) -> str:
        """HOST:PORT of the service."""
        assert self._target is not None, "this world has no service"
        return self._target

    def channel(self) -> grpc.Channel:
        """A connection of its own to the service."""
        # The global pool would give all clients of the process one connection.
        channel = grpc.insecure_channel(self.target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return channel

    def client(self, user: User | None, *, on_behalf_of: User | str | None = None) -> Client:
        """A client that calls as this user; None sends no token."""
        subject = on_behalf_of.soeid if isinstance(on_behalf_of, User) else on_behalf_of
        token = make_token(KEY, user.soeid) if user else None
        return Client(self.channel(), token, on_behalf_of=subject)

    def service_user(self, run_types: Collection[RunType] = tuple(RunType)) -> User:
        """Add a user of role service with these run types granted."""
        user = self.user(Role.SERVICE)
        for run_type in run_types:
            self.access.grant_run_type(user.soeid, run_type)
        return user

    def worker(
        self, run_types: Collection[RunType] = tuple(RunType), *, user: User | None = None
    ) -> WorkerClient:
        """A client that calls as a new service user with these run types granted, or as the user given.

        What it claims may be any test's job: use the fixture work_world, where there are no others.
        """
        caller = user or self.service_user(run_types)
        return WorkerClient(self.channel(), make_token(KEY, caller.soeid))

    def set_status(self, job_id: str | UUID, status: JobStatus) -> None:
        """Put a job into a status that no RPC reaches yet."""
        ended = status in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
        started = status not in {JobStatus.PENDING, JobStatus.CANCELLED}
        self.sql.execute(
            """UPDATE jobs SET status = %s, version = version + 1, update_time = clock_timestamp(),
                      start_time = CASE WHEN %s THEN clock_timestamp() END,
                      end_time = CASE WHEN %s THEN clock_timestamp() END,
                      error_type = CASE WHEN %s THEN 'ValueError' END,
                      cancelled_by_soeid = CASE WHEN %s THEN 'us00000' END
                WHERE job_id = %s""",
            (
                status.value,
                started,
                ended,
                status is JobStatus.FAILED,
                status is JobStatus.CANCELLED,
                str(job_id),
            ),
        )

    def events(self, job_id: str | UUID) -> list[dict[str, Any]]:
        """The history of a job, oldest first."""
        cursor = self.sql.execute(
            "SELECT * FROM job_events WHERE job_id = %s ORDER BY event_id", (str(job_id),)
        )
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def counts(self) -> tuple[int, int]:
        """How many jobs and how many events there are."""
        row = self.sql.execute(
            "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_events)"
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def close(self) -> None:
        """Close every connection."""
        for channel in self._channels:
            channel.close()
        self.sql.close()
        self.database.close()
