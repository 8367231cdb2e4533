"""Data sets that are gone, and the jobs that they left."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    Interval,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from jobs_service.model.caller import Caller
from jobs_service.storage.tables import deleted_datasets, jobs

KEPT = timedelta(seconds=60)
"""How long a deletion is kept, at least.

A create that found the data set may commit until its transaction is over: by default after 12 s. Longer ones
are looked for among the transactions that run, as far as this user of the database is shown them.
"""

_UNSETTLED: ColumnElement[datetime] = literal_column("'infinity'::timestamptz")
_SETTLE = (
    update(deleted_datasets)
    .where(deleted_datasets.c.delete_time == _UNSETTLED)
    .values(delete_time=func.clock_timestamp())
)
_old = deleted_datasets.c.delete_time < func.clock_timestamp() - bindparam("kept", type_=Interval)
_still_runs = literal_column(
    "EXISTS (SELECT FROM pg_stat_activity"
    " WHERE datname = current_database() AND xact_start <= deleted_datasets.delete_time)",
    Boolean,
)
_dataset_id = bindparam("dataset_id", type_=BigInteger)
_SETTLED = (
    select(deleted_datasets, and_(_old, not_(_still_runs)).label("is_over"))
    .where(
        deleted_datasets.c.delete_time < _UNSETTLED,
        or_(_dataset_id.is_(None), deleted_datasets.c.dataset_id == _dataset_id),
    )
    .order_by(deleted_datasets.c.delete_time, deleted_datasets.c.dataset_id)
    .limit(bindparam("limit", type_=Integer))
)
# "+ 0" keeps the planner from the index on dataset_id, where it would read all jobs that the data set ever
# had, ended or not, to find that none is left. Those that have not ended are few.
_ORPHANS = (
    select(jobs.c.job_id)
    .where(
        jobs.c.end_time.is_(None),
        jobs.c.dataset_id + literal_column("0") == _dataset_id,
        jobs.c.create_time <= bindparam("delete_time", type_=DateTime(timezone=True)),
    )
    .order_by(jobs.c.create_time.desc(), jobs.c.job_id.desc())
    .limit(bindparam("limit", type_=Integer))
)


@dataclass(frozen=True, slots=True)
class DeletedDataset:
    """A data set that is gone. Its jobs are those created at delete_time or before.

    by: who deleted it. is_over: no transaction still runs that may have found it.
    """

    dataset_id: int
    delete_time: datetime
    by: Caller
    is_over: bool


class DeletedDatasets:
    """The deleted_datasets table: a row for as long as there may be jobs to cancel."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, dataset_id: int, *, by: Caller) -> None:
        """Note a deletion of this transaction. It is settled in a later one: see settle."""
        statement = insert(deleted_datasets).values(
            dataset_id=dataset_id, delete_time=_UNSETTLED, actor_id=by.user_id, actor_soeid=by.soeid
        )
        excluded = statement.excluded
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[deleted_datasets.c.dataset_id],
                set_={
                    "delete_time": excluded.delete_time,
                    "actor_id": excluded.actor_id,
                    "actor_soeid": excluded.actor_soeid,
                },
            )
        )

    def settle(self) -> None:
        """Give deletions that are committed their time.

        Only now it is later than the beginning of any create that found one of these data sets.
        """
        self._connection.execute(_SETTLE)

    def settled(self, limit: int, dataset_id: int | None = None) -> list[DeletedDataset]:
        """Return deletions, the oldest first; of this data set alone if one is given."""
        parameters = {"limit": limit, "dataset_id": dataset_id, "kept": KEPT}
        return [
            DeletedDataset(
                row.dataset_id, row.delete_time, Caller(row.actor_soeid, row.actor_id), row.is_over
            )
            for row in self._connection.execute(_SETTLED, parameters)
        ]

    def orphans(self, deleted: DeletedDataset, limit: int) -> list[UUID]:
        """Return jobs of the data set that have not ended."""
        parameters = {
            "dataset_id": deleted.dataset_id,
            "delete_time": deleted.delete_time,
            "limit": limit,
        }
        return list(self._connection.execute(_ORPHANS, parameters).scalars())

    def remove(self, deleted: DeletedDataset) -> None:
        """Forget a deletion, unless the data set has been put and deleted again since."""
        same = (deleted_datasets.c.dataset_id == deleted.dataset_id) & (
            deleted_datasets.c.delete_time == deleted.delete_time
        )
        self._connection.execute(delete(deleted_datasets).where(same))
