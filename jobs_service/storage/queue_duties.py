"""What brings jobs into the queue, or out of it, without anybody asking; each a bounded portion."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    literal,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS

from jobs_service.model.job import JobStatus, RunType
from jobs_service.storage.claims import Place
from jobs_service.storage.job_queue import Enqueued, queue_rows
from jobs_service.storage.queue_tables import is_limited, job_queue
from jobs_service.storage.tables import jobs
from jobs_service.storage.turns import clock_of, kept_turn, turn_of

_portion = bindparam("portion", type_=Integer)
_claims = select(jobs.c.claims).where(jobs.c.job_id == job_queue.c.job_id).scalar_subquery()
_due = (
    select(job_queue, func.coalesce(_claims, 0).label("claims"))
    .where(~job_queue.c.ready, job_queue.c.available_time <= func.now())
    .order_by(job_queue.c.available_time)
    .limit(_portion)
    .with_for_update(of=job_queue, skip_locked=True)
    .cte("due")
    .prefix_with("MATERIALIZED")
)
_turned = select(_due.c.job_id, kept_turn(_due, _due.c.claims, _due.c.turn, _due.c.job_id).label("turn")).cte(
    "turned"
)
_PROMOTE = (
    update(job_queue)
    .where(job_queue.c.job_id == _turned.c.job_id)
    .values(ready=True, turn=_turned.c.turn)
    .returning(job_queue.c.run_type, job_queue.c.dataset_id, job_queue.c.ready, job_queue.c.held)
)

_without_turn = (
    select(jobs.c.job_id, jobs.c.run_type, jobs.c.dataset_id, jobs.c.create_time)
    .where(jobs.c.turn.is_(None), jobs.c.end_time.is_(None))
    .order_by(jobs.c.create_time)
    .limit(_portion)
    .with_for_update(skip_locked=True)
    .cte("without_turn")
    .prefix_with("MATERIALIZED")
)
_given = (
    select(
        _without_turn.c.job_id,
        turn_of(_without_turn, _without_turn.c.create_time, _without_turn.c.job_id).label("turn"),
    )
    .cte("given")
    .prefix_with("MATERIALIZED")
)
_adopted = (
    update(jobs)
    .where(
        # The ids twice: a join alone might read all jobs.
        jobs.c.job_id == func.any(func.array(select(_given.c.job_id).scalar_subquery(), type_=ARRAY(Uuid))),
        jobs.c.job_id == _given.c.job_id,
    )
    .values(turn=_given.c.turn)
    .returning(*(column for column in jobs.c if column.name != "run_parameters"))
    .cte("adopted")
)
_pending = (
    select(_adopted)
    .where(_adopted.c.status == literal(JobStatus.PENDING.value, literal_execute=True))
    .subquery("pending")
)
_queued = (
    queue_rows(_pending, now=func.now())
    .on_conflict_do_nothing(index_elements=[job_queue.c.job_id])
    .returning(job_queue.c.job_id, job_queue.c.ready, job_queue.c.held)
    .cte("queued")
)
_ADOPT = select(_adopted.c.run_type, _adopted.c.dataset_id, _queued.c.ready, _queued.c.held).select_from(
    _adopted.outerjoin(_queued, _queued.c.job_id == _adopted.c.job_id)
)

_types = (
    func.unnest(bindparam("run_types", type_=ARRAY(Text)))
    .table_valued("run_type", name="types")
    .render_derived()
)
_first_of_one = (
    select(job_queue.c.job_id, job_queue.c.dataset_id, job_queue.c.limited)
    .where(job_queue.c.run_type == _types.c.run_type, job_queue.c.ready, ~job_queue.c.held)
    .order_by(job_queue.c.neg_priority, job_queue.c.turn, job_queue.c.job_id)
    .limit(_portion)
    .lateral("first_of_one")
)
_first = (
    select(_first_of_one)
    .select_from(_types.join(_first_of_one, true()))
    .cte("first")
    .prefix_with("MATERIALIZED")
)
_ended_job = (
    select(jobs.c.job_id)
    .where(
        jobs.c.job_id == _first.c.job_id,
        jobs.c.status != literal(JobStatus.PENDING.value, literal_execute=True),
    )
    .with_for_update(skip_locked=True)
    .lateral("ended_job")
)
_ended = select(_ended_job.c.job_id).select_from(_first.join(_ended_job, true())).cte("ended")
_there = select(jobs.c.job_id).where(jobs.c.job_id == _first.c.job_id).scalar_subquery()
_gone = select(_first.c.job_id).where(_there.is_(None)).cte("gone")
_untidy = union_all(select(_ended.c.job_id), select(_gone.c.job_id)).scalar_subquery()
_TIDY = (
    delete(job_queue)
    .where(job_queue.c.job_id == func.any(func.array(_untidy, type_=ARRAY(Uuid))))
    .returning(job_queue.c.dataset_id)
)
_unlabelled = select(_first.c.job_id).where(~_first.c.limited, is_limited(_first.c.dataset_id))
_LABEL = (
    update(job_queue)
    .where(job_queue.c.job_id == func.any(func.array(_unlabelled.scalar_subquery(), type_=ARRAY(Uuid))))
    .values(limited=True, held=True)
    .returning(job_queue.c.dataset_id)
)
_HEAD = (
    select(job_queue.c.neg_priority, job_queue.c.turn, job_queue.c.job_id)
    .where(job_queue.c.run_type == bindparam("run_type"), job_queue.c.ready, ~job_queue.c.held)
    .order_by(job_queue.c.neg_priority, job_queue.c.turn, job_queue.c.job_id)
    .limit(1)
)
_DEAD = select(func.pg_stat_get_dead_tuples(cast(literal(job_queue.name, Text), REGCLASS)))
_CLOCK = select(clock_of(bindparam("run_type", type_=Text)))


@dataclass(frozen=True, slots=True)
class Portion:
    """What a duty has done: to how many jobs, and what follows of it."""

    jobs: int
    enqueued: Enqueued


class QueueDuties:
    """The queue, as upkeep sees to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def promote(self, portion: int) -> Portion:
        """Make up to so many jobs ready whose time has come."""
        return _portion_of(list(self._connection.execute(_PROMOTE, {"portion": portion})))

    def adopt(self, portion: int) -> Portion:
        """Give a turn and a place in the queue to jobs that release 0.1.0 has made, the oldest first."""
        return _portion_of(list(self._connection.execute(_ADOPT, {"portion": portion})))

    def dead_rows(self) -> int:
        """Return about how many rows of the queue are claimed already and still there, a second ago."""
        return int(self._connection.execute(_DEAD).scalar_one())

    def head(self, run_type: RunType) -> Place:
        """Return the place of the first job to claim; of none, the place that the next new one comes after.

        Slow where an old transaction keeps what was claimed long ago: all of that is passed, row by row.
        """
        found = self._connection.execute(_HEAD, {"run_type": run_type}).first()
        if found is not None:
            return Place(found.neg_priority, found.turn, found.job_id)
        return Place(0, self._connection.execute(_CLOCK, {"run_type": run_type}).scalar_one(), UUID(int=0))

    def tidy(self, portion: int) -> frozenset[int]:
        """Look at the first so many rows of each run type, and put right what is not as they say.

        Rows of jobs that are not PENDING, or gone, are removed; rows that do not know of a limit are held.
        Returns the data sets whose places are to be filled.
        """
        parameters = {"portion": portion, "run_types": list(RunType)}
        removed = self._connection.execute(_TIDY, parameters).scalars()
        held = self._connection.execute(_LABEL, parameters).scalars()
        return frozenset([*removed, *held])


def _portion_of(found: list[Row[Any]]) -> Portion:
    return Portion(
        len(found),
        Enqueued(
            frozenset(RunType(row.run_type) for row in found if row.ready and not row.held),
            frozenset(row.dataset_id for row in found if row.held),
        ),
    )
