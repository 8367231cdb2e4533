"""The queue of PENDING jobs that wait for no other job: into it and out of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert

from jobs_service.model.caller import Role
from jobs_service.model.job import Attempt, JobStatus, RunType
from jobs_service.model.work import Claim, ClaimRequest
from jobs_service.storage.access_store import role_named, role_of
from jobs_service.storage.claims import (
    ATTEMPTS,
    CLAIM,
    CLAIM_UP_TO_LAST,
    Place,
    attempt_of,
    claim_of,
    claim_parameters,
)
from jobs_service.storage.queue_tables import is_limited, job_queue
from jobs_service.storage.tables import jobs, run_type_grants
from jobs_service.storage.turns import kept_turn


@dataclass(frozen=True, slots=True)
class Enqueued:
    """run_types: of those that can be claimed at once. limited: data sets whose places are to be filled."""

    run_types: frozenset[RunType]
    limited: frozenset[int]


def queue_rows(
    source: FromClause, *, now: ColumnElement[Any], turn: ColumnElement[int] | None = None
) -> Insert:
    """Return the insert of a queue row for each row of source, which has the columns of a job.

    turn: another than the job's own.
    """
    # Its places are given under the lock of its limit; see storage/places.py.
    limited = is_limited(source.c.dataset_id)
    values = {
        "job_id": source.c.job_id,
        "run_type": source.c.run_type,
        "neg_priority": -source.c.priority,
        "turn": source.c.turn if turn is None else turn,
        "dataset_id": source.c.dataset_id,
        "payload_bytes": source.c.payload_bytes,
        "available_time": source.c.available_time,
        "ready": source.c.available_time <= now,
        "limited": limited,
        "held": limited,
    }
    return insert(job_queue).from_select(
        list(values), select(*(value.label(name) for name, value in values.items())).order_by(source.c.job_id)
    )


_callers = (
    func.unnest(bindparam("user_ids", type_=ARRAY(BigInteger)))
    .table_valued("user_id", name="callers")
    .render_derived()
)
_granted = select(run_type_grants.c.run_type).where(run_type_grants.c.user_id == _callers.c.user_id)
# What follows in this transaction is planned once and kept: by an index, then, also where the queue was
# nearly empty on that occasion.
_BEGIN_CLAIMS = select(
    _callers.c.user_id,
    role_of(_callers.c.user_id).label("role"),
    func.array(_granted.scalar_subquery(), type_=ARRAY(Text)).label("run_types"),
    func.set_config("enable_seqscan", "off", True),
    func.set_config("enable_bitmapscan", "off", True),
    func.set_config("jit", "off", True),
    # A plan for one job looks so much cheaper than one for any number that it would be made each time.
    func.set_config("plan_cache_mode", "force_generic_plan", True),
)

_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_pending = (
    select(jobs)
    .where(
        jobs.c.job_id == func.any(_job_ids),
        jobs.c.status == literal(JobStatus.PENDING.value, literal_execute=True),
    )
    .subquery("pending")
)
_ENQUEUE = (
    queue_rows(
        _pending,
        now=func.statement_timestamp(),
        turn=kept_turn(_pending, _pending.c.claims, _pending.c.turn, _pending.c.job_id),
    )
    .on_conflict_do_nothing(index_elements=[job_queue.c.job_id])
    .returning(job_queue.c.run_type, job_queue.c.dataset_id, job_queue.c.ready, job_queue.c.held)
)
_REMOVE = (
    delete(job_queue)
    .where(job_queue.c.job_id == func.any(_job_ids))
    .returning(job_queue.c.dataset_id, job_queue.c.limited, job_queue.c.ready, job_queue.c.held)
)


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """What the database says of somebody who wants to work. role None: no such user."""

    role: Role | None
    run_types: frozenset[RunType]


@dataclass(frozen=True, slots=True)
class Claimed:
    """What each request got. left: so many more would have been there, but for the bytes of the answers."""

    claims: list[list[Claim]]
    left: int


class JobQueue:
    """The job_queue table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def enqueue(self, job_ids: Collection[UUID]) -> Enqueued:
        """Put those of these jobs into the queue that are PENDING and not there yet, as their rows say.

        The caller has locked the jobs, and lets places.fill decide about those of limited data sets.
        """
        if not job_ids:
            return Enqueued(frozenset(), frozenset())
        found = self._connection.execute(_ENQUEUE, {"job_ids": sorted(job_ids)}).all()
        return Enqueued(
            frozenset(RunType(row.run_type) for row in found if row.ready and not row.held),
            frozenset(row.dataset_id for row in found if row.held),
        )

    def remove(self, job_ids: Collection[UUID]) -> frozenset[int]:
        """Take these jobs, which the caller has locked, out of the queue.

        Returns the limited data sets in which one of them had a place.
        """
        if not job_ids:
            return frozenset()
        gone = self._connection.execute(_REMOVE, {"job_ids": sorted(job_ids)})
        return frozenset(row.dataset_id for row in gone if row.limited and row.ready and not row.held)

    def begin_claims(self, user_ids: Collection[int]) -> dict[int, WorkerStanding]:
        """Return what these callers may claim. The first statement of every transaction with claims."""
        found = self._connection.execute(_BEGIN_CLAIMS, {"user_ids": list(user_ids)})
        return {
            row.user_id: WorkerStanding(role_named(row.role), frozenset(map(RunType, row.run_types)))
            for row in found
        }

    def claim(
        self, run_types: Mapping[RunType, Place], requests: Sequence[ClaimRequest], *, answer_bytes: int
    ) -> Claimed:
        """Claim for requests that may all have these run types, in the order of priority, turn and job id.

        The first requests get the first jobs. Jobs that another transaction holds are passed over, and
        those before the place given for their run type (FIRST: all are looked at).
        answer_bytes: of payloads for each request, over which it gets no more; the first job always fits.
        """
        parameters = claim_parameters(run_types, requests, answer_bytes)
        several = len(run_types) > 1
        found = self._connection.execute(CLAIM_UP_TO_LAST if several else CLAIM, parameters).all()
        if several and not found[0].picked:
            # All of the first may be held by others, while there are more.
            found = self._connection.execute(CLAIM, parameters).all()
        claimed = [row for row in found if row.job_id is not None]
        earlier = self._attempts([row.job_id for row in claimed if row.claims > 1])
        claims: list[list[Claim]] = [[] for _ in requests]
        for row in claimed:
            claims[row.n].append(claim_of(row, earlier.get(row.job_id, [])))
        return Claimed(claims, left=found[0].picked - len(claimed))

    def _attempts(self, job_ids: list[UUID]) -> dict[UUID, list[Attempt]]:
        found: dict[UUID, list[Attempt]] = {}
        for row in self._connection.execute(ATTEMPTS, {"job_ids": job_ids}) if job_ids else ():
            found.setdefault(row.job_id, []).append(attempt_of(row))
        return found
