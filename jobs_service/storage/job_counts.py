"""Jobs by run type and status, kept by adding up the history: to read them costs the same at any size."""

from sqlalchemy import (
    Connection,
    Integer,
    Text,
    func,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from jobs_service.model.job import JobStatus, RunType
from jobs_service.storage.event_readers import Place, next_events
from jobs_service.storage.tables import event_readers, job_counts, job_events, jobs

READER = "job_counts"
PORTION = 5_000
"""Events in one transaction: some 50 ms."""


_events = next_events(
    # Where the event does not know it (release 0.1.0 wrote it) its job does.
    func.coalesce(
        job_events.c.run_type,
        select(jobs.c.run_type).where(jobs.c.job_id == job_events.c.job_id).scalar_subquery(),
    ).label("run_type"),
    job_events.c.status_before,
    job_events.c.status_after,
    at_most=PORTION,
).cte("events")
_changes = union_all(
    select(_events.c.run_type, _events.c.status_after.label("status"), literal(1, Integer).label("jobs")),
    select(_events.c.run_type, _events.c.status_before, literal(-1, Integer)).where(
        _events.c.status_before.is_not(None)
    ),
).subquery("changes")
_sums = (
    select(_changes.c.run_type, _changes.c.status, func.sum(_changes.c.jobs))
    .where(_changes.c.run_type.is_not(None))
    .group_by(_changes.c.run_type, _changes.c.status)
)
_insert = insert(job_counts).from_select(["run_type", "status", "jobs"], _sums)
_counted = _insert.on_conflict_do_update(
    index_elements=[job_counts.c.run_type, job_counts.c.status],
    set_={"jobs": job_counts.c.jobs + _insert.excluded.jobs},
).cte("counted")
_last = (
    select(_events.c.transaction_id, _events.c.event_id)
    .order_by(_events.c.transaction_id.desc(), _events.c.event_id.desc())
    .limit(literal(1, Integer, literal_execute=True))
    .cte("last")
)
_FOLD = (
    update(event_readers)
    .where(
        event_readers.c.reader == literal(READER, Text),
        tuple_(_last.c.transaction_id, _last.c.event_id)
        > tuple_(event_readers.c.transaction_id, event_readers.c.event_id),
    )
    .values(transaction_id=_last.c.transaction_id, event_id=_last.c.event_id)
    .returning(select(func.count()).select_from(_events).scalar_subquery())
    .add_cte(_counted)
)

_COUNTS = select(job_counts)


class JobCounts:
    """The job_counts table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fold(self, place: Place) -> int:
        """Add the next PORTION events after this place; returns how many there were.

        The reader must be locked. Counts and place change together or not at all.
        """
        return self._connection.execute(_FOLD, place.parameters()).scalar_one_or_none() or 0

    def by_run_type_and_status(self) -> dict[tuple[str, str], int]:
        """Return the counts, zeros too, as far as the events have been read.

        A moment's difference is possible, below zero never: events of one job may be read in an order
        that is not theirs, if their transactions overlapped.
        """
        counts = {(run_type.value, status.value): 0 for run_type in RunType for status in JobStatus}
        for row in self._connection.execute(_COUNTS):
            counts[row.run_type, row.status] = max(0, row.jobs)
        return counts
