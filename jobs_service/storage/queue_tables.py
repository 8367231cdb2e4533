"""The tables of work to be done: what is ready, who has it, how often it was tried, what waits for what."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    Interval,
    Sequence,
    Table,
    Text,
    Uuid,
    select,
    text,
)

from jobs_service.model.job import AttemptOutcome, RunType
from jobs_service.storage.tables import metadata, moment, words

job_queue = Table(
    "job_queue",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("run_type", Text, nullable=False),
    # Ascending like everything else in the order of claims.
    Column("neg_priority", Integer, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("dataset_id", BigInteger, nullable=False),
    # Of the jobs row, so that a claim knows what its answer will hold before it takes a job.
    Column("payload_bytes", Integer, nullable=False),
    moment("available_time"),
    # Whether available_time has come; upkeep promotes.
    Column("ready", Boolean, nullable=False),
    # limited: the data set has a limit of running jobs. held: all of its places are taken.
    Column("limited", Boolean, nullable=False),
    Column("held", Boolean, nullable=False),
)
"""One narrow row for each PENDING job that waits for no other job. Claims read it first, and delete it."""

Index(
    "ix_job_queue_order",
    job_queue.c.run_type,
    job_queue.c.neg_priority,
    job_queue.c.turn,
    job_queue.c.job_id,
    postgresql_where=text("ready AND NOT held"),
)
Index("ix_job_queue_due", job_queue.c.available_time, postgresql_where=text("NOT ready"))
Index("ix_job_queue_last_turn", job_queue.c.dataset_id, job_queue.c.run_type, job_queue.c.turn)
Index(
    "ix_job_queue_held",
    job_queue.c.dataset_id,
    job_queue.c.neg_priority,
    job_queue.c.turn,
    job_queue.c.job_id,
    postgresql_where=text("ready AND held"),
)
Index(
    "ix_job_queue_placed",
    job_queue.c.dataset_id,
    postgresql_where=text("limited AND ready AND NOT held"),
)

TURN_CLOCKS: dict[RunType, Sequence] = {
    run_type: Sequence(f"job_turn_{run_type.lower()}", start=0, minvalue=0, metadata=metadata)
    for run_type in RunType
}
"""The turn that was claimed last, by run type. Sequences: writing one locks nobody and leaves no dead row."""

job_leases = Table(
    "job_leases",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("claim", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lease_token", Uuid, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("dataset_id", BigInteger, nullable=False),
    Column("limited", Boolean, nullable=False),
    moment("start_time"),
    moment("lease_expire_time"),
    Column("lease_duration", Interval, nullable=False),
    # No lease goes beyond it.
    moment("run_deadline"),
    Index("ix_job_leases_expiry", "lease_expire_time"),
    Index("ix_job_leases_placed", "dataset_id", postgresql_where=text("limited")),
)
"""One narrow row for each RUNNING job, which heartbeats write to; whoever ends the claim deletes it."""

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("claim", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("lease_token", Uuid, nullable=False),
    Column("worker_id", Text, nullable=False),
    moment("start_time"),
    moment("end_time"),
    Column(
        "outcome", Text, CheckConstraint(words("outcome", AttemptOutcome), name="outcome"), nullable=False
    ),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("error_retryable", Boolean),
    # Whether the end of this claim made the job PENDING again.
    Column("will_retry", Boolean, nullable=False),
)
"""One row for each claim that has ended, written once."""

job_dependencies = Table(
    "job_dependencies",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("depends_on_job_id", Uuid, primary_key=True),
    Index(None, "depends_on_job_id", "job_id"),
)

ended_dependencies = Table(
    "ended_dependencies",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    # The last dependant that was told. Unset: none yet.
    Column("after_job_id", Uuid),
)
"""Jobs that have ended and whose dependants are still to be told; see upkeep/tell_dependants.py."""

dataset_limits = Table(
    "dataset_limits",
    metadata,
    Column("dataset_id", BigInteger, ForeignKey("datasets.dataset_id", ondelete="CASCADE"), primary_key=True),
    Column("max_running", Integer, CheckConstraint("max_running > 0", name="max_running"), nullable=False),
)


def is_limited(dataset_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the expression of whether this data set has a limit: looked up one by one, by the key."""
    found = select(dataset_limits.c.dataset_id).where(dataset_limits.c.dataset_id == dataset_id)
    return found.scalar_subquery().is_not(None)
