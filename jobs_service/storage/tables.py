"""The tables as the code believes they are. A test holds the migrations against this."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

from jobs_service.model.access import AccessEventType
from jobs_service.model.caller import Level
from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.states import TERMINAL, EventType

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


class Xid8(UserDefinedType[int]):
    """A transaction id with its epoch, so that it never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in DDL."""
        return "xid8"


def words(column: str, allowed: Iterable[StrEnum | str]) -> str:
    """Return the SQL condition that the column holds one of these words."""
    return f"{column} IN ({', '.join(repr(str(word)) for word in sorted(allowed))})"


def moment(name: str, *, nullable: bool = False, default: bool = False) -> Column[object]:
    """Return a column for a time of the database's clock."""
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=text("now()") if default else None,
    )


schema_info = Table(
    "schema_info",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row", name="one_row"), primary_key=True),
    # The oldest release that can run on this schema.
    Column("oldest_release", Text, nullable=False),
)

roles = Table("roles", metadata, Column("role", Text, primary_key=True))
"""One row for each word of model.caller.Role."""

users = Table(
    "users",
    metadata,
    # Ids are never reused: a sequence only goes up, and jobs keep the id of a user who is gone.
    Column("user_id", BigInteger, Identity(), primary_key=True),
    Column(
        "soeid",
        Text,
        CheckConstraint("soeid ~ '^[a-z]{2}[0-9]{5}$'", name="soeid"),
        nullable=False,
        unique=True,
    ),
    Column("role", Text, ForeignKey("roles.role"), nullable=False),
)

run_type_grants = Table(
    "run_type_grants",
    metadata,
    Column("user_id", BigInteger, ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True),
    Column("run_type", Text, CheckConstraint(words("run_type", RunType), name="run_type"), primary_key=True),
)

datasets = Table(
    "datasets",
    metadata,
    Column(
        "dataset_id",
        BigInteger,
        CheckConstraint("dataset_id > 0", name="dataset_id"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", Text, nullable=False),
)

dataset_permissions = Table(
    "dataset_permissions",
    metadata,
    Column("user_id", BigInteger, ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True),
    Column("dataset_id", BigInteger, ForeignKey("datasets.dataset_id", ondelete="CASCADE"), primary_key=True),
    Column(
        "level",
        Text,
        CheckConstraint(words("level", [level.word for level in Level]), name="level"),
        nullable=False,
    ),
    Index(None, "dataset_id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("run_type", Text, CheckConstraint(words("run_type", RunType), name="run_type"), nullable=False),
    Column(
        "status",
        Text,
        CheckConstraint(words("status", JobStatus), name="status"),
        nullable=False,
        server_default=text("'PENDING'"),
    ),
    # No foreign keys from here: rows outlive their data set, owner and creator.
    Column("dataset_id", BigInteger, nullable=False),
    Column("owner_id", BigInteger, nullable=False),
    Column("creator_id", BigInteger, nullable=False),
    Column("description", Text),
    Column("external_id", Text),
    Column(
        "priority", Integer, CheckConstraint("priority BETWEEN 0 AND 100", name="priority"), nullable=False
    ),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    moment("create_time", default=True),
    moment("available_time", default=True),
    moment("start_time", nullable=True),
    moment("update_time", default=True),
    moment("end_time", nullable=True),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("progress", JSONB(none_as_null=True)),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("error_retryable", Boolean),
    Column("cancelled_by_soeid", Text),
    Column("cancel_reason", Text),
    Column("source_commit_id", Text),
    Column("output_commit_id", Text),
    Column("request_id", Uuid),
    Column("request_hash", LargeBinary),
    Column("payload_bytes", Integer, nullable=False),
    Column("run_parameters", JSONB, nullable=False),
    Column("output_summary", JSONB(none_as_null=True)),
    # The W3C trace context that the job was created in, for the spans of its workers.
    Column("traceparent", Text),
    # The place between the data sets, kept over retries. Unset: release 0.1.0 has made the job, which knows
    # no queue; see upkeep/adopt_jobs.py.
    Column("turn", BigInteger),
    # How often a worker has claimed the job; attempt counts those that were spent.
    Column("claims", Integer, nullable=False, server_default=text("0")),
    # Of the claim that has the job; see job_leases.
    Column("lease_token", Uuid),
    # What max_attempts was at first, and grows by with each RetryJob.
    Column("attempt_budget", Integer, nullable=False, server_default=text("1")),
    # Releases since the last attempt that was spent.
    Column("releases", Integer, nullable=False, server_default=text("0")),
    # Unset: the default of model/retry.py.
    Column("run_timeout", Interval),
    Column("retry_initial", Interval),
    Column("retry_max", Interval),
    Column("retry_multiplier", Double),
    Column("dependencies", Integer, nullable=False, server_default=text("0")),
    Column("keep_waiting", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint(f"({words('status', TERMINAL)}) = (end_time IS NOT NULL)", name="end_time"),
    CheckConstraint("(request_id IS NULL) = (request_hash IS NULL)", name="request_hash"),
    # The indexes on the failed and on the cancelled know them by these columns.
    CheckConstraint("(status = 'FAILED') = (error_type IS NOT NULL)", name="error_type"),
    CheckConstraint("(status = 'CANCELLED') = (cancelled_by_soeid IS NOT NULL)", name="cancelled_by_soeid"),
)

_newest_first = (jobs.c.create_time.desc(), jobs.c.job_id.desc())

# None of these names status: an index that does would make every claim and finish write to it.
# What is included is what visibility and a run type need: who sees few of many jobs reads the index alone.
Index("ix_jobs_newest", *_newest_first)
Index(
    "ix_jobs_owner_newest",
    jobs.c.owner_id,
    *_newest_first,
    postgresql_include=["dataset_id", "creator_id", "run_type"],
)
Index(
    "ix_jobs_creator_newest",
    jobs.c.creator_id,
    *_newest_first,
    postgresql_where=text("creator_id <> owner_id"),
)
Index(
    "ix_jobs_dataset_newest",
    jobs.c.dataset_id,
    *_newest_first,
    postgresql_include=["owner_id", "creator_id", "run_type"],
)
Index(
    "ix_jobs_external_newest",
    jobs.c.external_id,
    *_newest_first,
    postgresql_include=["dataset_id", "owner_id", "creator_id", "run_type"],
    postgresql_where=text("external_id IS NOT NULL"),
)
Index("ix_jobs_active_newest", *_newest_first, postgresql_where=text("end_time IS NULL"))
Index("ix_jobs_ended", jobs.c.end_time, postgresql_where=text("end_time IS NOT NULL"))
Index(
    "ix_jobs_without_turn",
    jobs.c.create_time,
    postgresql_where=text("turn IS NULL AND end_time IS NULL"),
)
Index(
    "ix_jobs_failed_newest",
    *_newest_first,
    postgresql_include=["dataset_id", "owner_id", "creator_id", "run_type"],
    postgresql_where=text("error_type IS NOT NULL"),
)
Index(
    "ix_jobs_cancelled_newest",
    *_newest_first,
    postgresql_include=["dataset_id", "owner_id", "creator_id", "run_type"],
    postgresql_where=text("cancelled_by_soeid IS NOT NULL"),
)
Index(
    "uq_jobs_request_id",
    jobs.c.owner_id,
    jobs.c.creator_id,
    jobs.c.request_id,
    unique=True,
    postgresql_where=text("request_id IS NOT NULL"),
)

deleted_datasets = Table(
    "deleted_datasets",
    metadata,
    Column("dataset_id", BigInteger, primary_key=True, autoincrement=False),
    moment("delete_time", default=True),
    Column("actor_id", BigInteger, nullable=False),
    Column("actor_soeid", Text, nullable=False),
)
"""Data sets that are gone and whose jobs are still to be cancelled; see upkeep/cancel_orphans.py."""

access_events = Table(
    "access_events",
    metadata,
    Column("event_id", BigInteger, Identity(), primary_key=True),
    Column("type", Text, CheckConstraint(words("type", AccessEventType), name="type"), nullable=False),
    # Unset: the command line, which knows no SOEID.
    Column("actor_id", BigInteger),
    Column("actor_soeid", Text),
    Column("user_id", BigInteger),
    Column("user_soeid", Text),
    Column("dataset_id", BigInteger),
    # The role, name, level, run type or limit that was set.
    Column("value", Text),
    moment("time", default=True),
)
"""What was changed in users, data sets and permissions, and by whom."""

job_events = Table(
    "job_events",
    metadata,
    Column("event_id", BigInteger, Identity(), primary_key=True),
    Column("type", Text, CheckConstraint(words("type", EventType), name="type"), nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("actor_id", BigInteger, nullable=False),
    Column("actor_soeid", Text, nullable=False),
    Column("on_behalf_of_id", BigInteger),
    Column("on_behalf_of_soeid", Text),
    Column("reason", Text),
    Column("status_before", Text, CheckConstraint(words("status_before", JobStatus), name="status_before")),
    Column(
        "status_after",
        Text,
        CheckConstraint(words("status_after", JobStatus), name="status_after"),
        nullable=False,
    ),
    moment("time"),
    # A reader in commit order needs it: a later event_id may be committed first.
    Column("transaction_id", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    # The job's. Unset in what release 0.1.0 has written, and writes beside newer ones.
    Column("run_type", Text),
    Index(None, "job_id", "event_id"),
    Index(None, "transaction_id", "event_id"),
)

event_readers = Table(
    "event_readers",
    metadata,
    Column("reader", Text, primary_key=True),
    # The last event that the reader has read; see storage/event_readers.py.
    Column("transaction_id", Xid8, nullable=False, server_default=text("'0'::xid8")),
    Column("event_id", BigInteger, nullable=False, server_default=text("0")),
)

job_counts = Table(
    "job_counts",
    metadata,
    Column("run_type", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
)
"""Jobs by run type and status, as far as the reader job_counts has read the events."""
