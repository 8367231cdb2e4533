"""What operators see of work that waits, or is overdue: little is read, however much there is."""

from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Select,
    Text,
    cast,
    extract,
    func,
    literal,
    select,
    union_all,
)

from jobs_service.model.job import RunType
from jobs_service.storage.queue_tables import ended_dependencies, job_leases, job_queue
from jobs_service.storage.tables import jobs

CAP = 10_000
"""Where counting stops: of each run type's ready jobs, of all that are held, of all that are delayed."""
UNTOLD_CAP = 1_000
"""Where counting stops of the ended jobs whose dependants are still to be told."""
STATES = ("ready", "held", "delayed")


@dataclass(frozen=True, slots=True)
class Oldest:
    """Seconds that jobs have been available which no worker has taken, of the CAP jobs made first.

    ready: by run type, of those that could be claimed; 0 where there is none, left out where CAP jobs that
    were made before may hide one. waiting: the held ones too, None where not known.
    """

    ready: dict[str, float]
    waiting: float | None


@dataclass(frozen=True, slots=True)
class Untold:
    """Ended jobs whose dependants are still to be told: how many, UNTOLD_CAP at most, and since when."""

    jobs: int
    oldest_seconds: float


def _first(number: int) -> ColumnElement[int]:
    return literal(number, Integer, literal_execute=True)


def _word(text: str) -> ColumnElement[str]:
    return literal(text, Text, literal_execute=True)


def _seconds_since(moment: ColumnElement[object]) -> ColumnElement[float]:
    return cast(extract("epoch", func.now() - moment), Float)


_queue = job_queue.c


def _ready(run_type: RunType) -> Select[str, str, int]:
    counted = (
        select(_queue.job_id)
        .where(_queue.run_type == _word(run_type.value), _queue.ready, ~_queue.held)
        # Each goes by an index of its own.
        .order_by(_queue.neg_priority, _queue.turn, _queue.job_id)
        .limit(_first(CAP))
        .subquery()
    )
    return select(
        _word(run_type.value).label("run_type"), _word("ready").label("state"), func.count()
    ).select_from(counted)


def _others(state: str, where: ColumnElement[bool], *order: ColumnElement[object]) -> Select[str, str, int]:
    counted = select(_queue.run_type).where(where).order_by(*order).limit(_first(CAP)).subquery()
    return select(counted.c.run_type, _word(state), func.count()).group_by(counted.c.run_type)


_DEPTHS = union_all(
    *(_ready(run_type) for run_type in RunType),
    _others(
        "held",
        _queue.ready & _queue.held,
        _queue.dataset_id,
        _queue.neg_priority,
        _queue.turn,
        _queue.job_id,
    ),
    _others("delayed", ~_queue.ready, _queue.available_time),
)

# Ids of jobs are made in the order of time.
_made_first = (
    select(_queue.run_type, _queue.ready, _queue.held, _queue.available_time)
    .order_by(_queue.job_id)
    .limit(_first(CAP))
    .subquery("made_first")
)
_since = func.min(_made_first.c.available_time)
_OLDEST = select(
    _made_first.c.run_type,
    func.count().label("looked_at"),
    _seconds_since(_since.filter(_made_first.c.ready & ~_made_first.c.held)).label("ready"),
    _seconds_since(_since.filter(_made_first.c.ready)).label("waiting"),
).group_by(_made_first.c.run_type)

_untold = (
    select(jobs.c.end_time)
    .select_from(ended_dependencies.outerjoin(jobs, jobs.c.job_id == ended_dependencies.c.job_id))
    .limit(_first(UNTOLD_CAP))
    .subquery("untold")
)
_UNTOLD = select(
    func.count().label("jobs"), func.coalesce(_seconds_since(func.min(_untold.c.end_time)), 0).label("oldest")
).select_from(_untold)

_OVERDUE = select(func.coalesce(_seconds_since(func.min(job_leases.c.lease_expire_time)), 0))


class QueueFigures:
    """Figures of the tables of work."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def depths(self) -> dict[tuple[str, str], int]:
        """Return how many jobs of each run type are in each of the STATES, zeros too; see CAP."""
        depths = {(run_type.value, state): 0 for run_type in RunType for state in STATES}
        for run_type, state, number in self._connection.execute(_DEPTHS):
            depths[run_type, state] = number
        return depths

    def oldest(self) -> Oldest:
        """Return how long the oldest jobs have been waiting for a worker."""
        rows = self._connection.execute(_OLDEST).all()
        known = sum(row.looked_at for row in rows) < CAP
        ready = {run_type.value: 0.0 for run_type in RunType} if known else {}
        ready |= {row.run_type: max(0.0, row.ready) for row in rows if row.ready is not None}
        waiting = [row.waiting for row in rows if row.waiting is not None]
        return Oldest(ready, max(0.0, *waiting) if waiting else 0.0 if known else None)

    def untold(self) -> Untold:
        """Return what ended and not everybody knows of yet who waits for it."""
        row = self._connection.execute(_UNTOLD).one()
        return Untold(row.jobs, max(0.0, row.oldest))

    def overdue_seconds(self) -> float:
        """Return how long ago the lease expired that expired first; 0: none has."""
        return max(0.0, self._connection.execute(_OVERDUE).scalar_one())
