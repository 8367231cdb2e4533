"""Readers of the history: each reads every event once, in commit order, however late it was committed.

Ids alone would lose events: a transaction that began earlier may commit later, behind what was read.
So a reader stops before the oldest transaction that still runs. Events of one transaction stand together,
in the order of their ids.
"""

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Float,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    extract,
    func,
    literal,
    select,
    true,
    tuple_,
)

from jobs_service.storage.tables import Xid8, event_readers, job_events

UNREAD_CAP = 10_000
"""Where counting what a reader has not read stops."""


class ReaderAhead(Exception):
    """A reader has read further than this cluster has come: it would wait for years, and silently."""


@dataclass(frozen=True, slots=True)
class Place:
    """The last event that a reader has read."""

    transaction_id: str
    event_id: int

    def parameters(self) -> dict[str, str | int]:
        """For a statement with next_events in it."""
        return {"transaction_id": self.transaction_id, "event_id": self.event_id}


@dataclass(frozen=True, slots=True)
class UnreadEvents:
    """Events that a reader has not read: how many, UNREAD_CAP at most, and the age of the oldest."""

    events: int
    oldest_seconds: float


_PLACE = (job_events.c.transaction_id, job_events.c.event_id)


def next_events(*columns: ColumnElement[object], at_most: int) -> Select[tuple[object, ...]]:
    """Return the next events after a Place, with both columns of their own places."""
    after = tuple_(
        cast(bindparam("transaction_id", type_=Text), Xid8), bindparam("event_id", type_=BigInteger)
    )
    # What is before it has ended: committed, and seen by this very statement, or rolled back.
    oldest_running = func.pg_snapshot_xmin(func.pg_current_snapshot(), type_=Xid8())
    return (
        select(*_PLACE, *columns)
        .where(tuple_(*_PLACE) > after, job_events.c.transaction_id < oldest_running)
        .order_by(*_PLACE)
        .limit(literal(at_most, Integer, literal_execute=True))
    )


# A reader that loses what it has read loses what it made of it too, and reads it again: it need not wait
# for a standby, which may be away.
_NEED_NOT_LAST = select(func.set_config("synchronous_commit", "local", True))
_LOCK = (
    select(cast(event_readers.c.transaction_id, Text).label("transaction_id"), event_readers.c.event_id)
    .where(event_readers.c.reader == bindparam("reader"))
    .with_for_update(skip_locked=True)
)
_HINDMOST = select(
    event_readers.c.reader,
    cast(event_readers.c.transaction_id, Text).label("transaction_id"),
    event_readers.c.event_id,
).order_by(event_readers.c.transaction_id, event_readers.c.event_id)
_NEXT_TRANSACTION = select(cast(func.pg_snapshot_xmax(func.pg_current_snapshot()), Text))
_left = (
    select(job_events.c.time)
    .where(tuple_(*_PLACE) > tuple_(event_readers.c.transaction_id, event_readers.c.event_id))
    .order_by(*_PLACE)
    .limit(literal(UNREAD_CAP, Integer, literal_execute=True))
    .correlate(event_readers)
    .subquery("left_over")
)
_age = cast(extract("epoch", func.clock_timestamp() - func.min(_left.c.time)), Float)
_summary = (
    select(func.count().label("events"), func.greatest(func.coalesce(_age, 0), 0).label("oldest_seconds"))
    .select_from(_left)
    .lateral("summary")
)
_UNREAD = select(event_readers.c.reader, _summary.c.events, _summary.c.oldest_seconds).select_from(
    event_readers.join(_summary, true())
)


class EventReaders:
    """The event_readers table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lock(self, reader: str) -> Place | None:
        """Lock a reader until the transaction ends, and return its place; None: another process has it.

        What the transaction writes survives this server, not its loss. Raises ReaderAhead.
        """
        self._connection.execute(_NEED_NOT_LAST)
        row = self._connection.execute(_LOCK, {"reader": reader}).one_or_none()
        if row is None:
            return None
        self._require_reached(reader, row.transaction_id)
        return Place(row.transaction_id, row.event_id)

    def hindmost(self) -> Place | None:
        """Return the place up to which every reader has read; None: there is no reader.

        Readers only go on, so what is read stays read. Raises ReaderAhead.
        """
        readers = self._connection.execute(_HINDMOST).all()
        for row in readers[-1:]:
            self._require_reached(row.reader, row.transaction_id)
        return Place(readers[0].transaction_id, readers[0].event_id) if readers else None

    def _require_reached(self, reader: str, transaction_id: str) -> None:
        # A statement of its own: another replica may have moved the place after the first one began.
        if int(transaction_id) >= int(self._connection.execute(_NEXT_TRANSACTION).scalar_one()):
            raise ReaderAhead(
                f"the reader {reader} is at transaction {transaction_id}, which is not reached here yet:"
                " was this database restored from a dump? The README says what to do then"
            )

    def unread(self) -> dict[str, UnreadEvents]:
        """Return what each reader has not read yet, of what is committed."""
        return {
            row.reader: UnreadEvents(row.events, float(row.oldest_seconds))
            for row in self._connection.execute(_UNREAD)
        }
