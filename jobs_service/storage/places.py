"""Places of data sets with a limit: as many of their jobs can be claimed as there is room for.

Jobs of such a data set enter the queue held. A place is taken by a job that runs or that can be claimed;
whoever frees one gives it to the next in order, in the same transaction.
"""

from collections.abc import Collection

from sqlalchemy import BigInteger, Connection, bindparam, case, exists, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.job import RunType
from jobs_service.storage.queue_tables import dataset_limits, job_leases, job_queue

_dataset_ids = bindparam("dataset_ids", type_=ARRAY(BigInteger))
_asked = func.unnest(_dataset_ids).table_valued("dataset_id", name="asked").render_derived()
_LOCK = (
    select(dataset_limits.c.dataset_id)
    .where(dataset_limits.c.dataset_id == func.any(_dataset_ids))
    .order_by(dataset_limits.c.dataset_id)
    .with_for_update()
)
_LOCK_FREE = _LOCK.with_for_update(skip_locked=True)
_LIMITED = select(dataset_limits.c.dataset_id).where(dataset_limits.c.dataset_id == func.any(_dataset_ids))
_running = (
    select(func.count())
    .where(job_leases.c.dataset_id == _asked.c.dataset_id, job_leases.c.limited)
    .scalar_subquery()
)
_waiting = (
    select(func.count())
    .where(
        job_queue.c.dataset_id == _asked.c.dataset_id,
        job_queue.c.limited,
        job_queue.c.ready,
        ~job_queue.c.held,
    )
    .scalar_subquery()
)
_max_running = (
    select(dataset_limits.c.max_running)
    .where(dataset_limits.c.dataset_id == _asked.c.dataset_id)
    .scalar_subquery()
)
_free = (
    select(
        _asked.c.dataset_id,
        case(
            # What a removed limit has left is let go, a portion at a time.
            (_max_running.is_(None), bindparam("portion", type_=BigInteger)),
            else_=func.greatest(_max_running - _running - _waiting, 0),
        ).label("places"),
        _max_running.is_not(None).label("limited"),
    )
    .cte("free")
    .prefix_with("MATERIALIZED")
)
_next_of_one = (
    select(job_queue.c.job_id)
    .where(job_queue.c.dataset_id == _free.c.dataset_id, job_queue.c.ready, job_queue.c.held)
    .order_by(job_queue.c.neg_priority, job_queue.c.turn, job_queue.c.job_id)
    .limit(_free.c.places)
    .with_for_update(skip_locked=True)
    .lateral("next_of_one")
)
_next = (
    select(_next_of_one.c.job_id, _free.c.limited)
    .select_from(_free.join(_next_of_one, true()))
    .cte("next")
    .prefix_with("MATERIALIZED")
)
_FILL = (
    update(job_queue)
    .where(job_queue.c.job_id == _next.c.job_id)
    .values(held=False, limited=_next.c.limited)
    .returning(job_queue.c.run_type)
)

_dataset_id = bindparam("labelled_dataset_id", type_=BigInteger)
_is_limited = exists().where(dataset_limits.c.dataset_id == _dataset_id)
_mislabelled = (
    select(job_queue.c.job_id)
    .where(
        job_queue.c.dataset_id == _dataset_id,
        or_(job_queue.c.limited != _is_limited, job_queue.c.held != _is_limited),
    )
    # What somebody is just taking out needs no label.
    .with_for_update(skip_locked=True)
    .cte("mislabelled")
)
_RELABEL_QUEUE = (
    update(job_queue)
    .where(job_queue.c.job_id == _mislabelled.c.job_id)
    .values(limited=_is_limited, held=_is_limited)
)
_KEEP_RUNNING = (
    select(job_leases.c.job_id)
    .where(job_leases.c.dataset_id == _dataset_id)
    .order_by(job_leases.c.job_id)
    .with_for_update()
)
_running_of_one = (
    select(job_leases.c.job_id)
    .where(job_leases.c.dataset_id == _dataset_id, job_leases.c.limited != _is_limited)
    # What was claimed since those that ran were locked, and somebody is ending, needs no label.
    .with_for_update(skip_locked=True)
    .cte("running")
)
_RELABEL_LEASES = (
    update(job_leases).where(job_leases.c.job_id == _running_of_one.c.job_id).values(limited=_is_limited)
)
_first_held = select(func.min(job_queue.c.dataset_id)).where(job_queue.c.ready, job_queue.c.held)
_held = select(_first_held.scalar_subquery().label("dataset_id")).cte("held", recursive=True)
# From one data set to the next by the index: each may have a flood of held jobs.
_held = _held.union_all(
    select(_first_held.where(job_queue.c.dataset_id > _held.c.dataset_id).scalar_subquery()).where(
        _held.c.dataset_id.is_not(None)
    )
)
_HELD = select(_held.c.dataset_id).where(_held.c.dataset_id.is_not(None)).limit(bindparam("portion"))
_UNFILLED = select(_free.c.dataset_id).where(_free.c.places > 0)
_unlabelled = (
    select(job_leases.c.job_id)
    .where(~job_leases.c.limited, job_leases.c.dataset_id.in_(select(dataset_limits.c.dataset_id)))
    .with_for_update(of=job_leases, skip_locked=True)
    .cte("unlabelled")
)
_LABEL_LEASES = update(job_leases).where(job_leases.c.job_id == _unlabelled.c.job_id).values(limited=True)
_PORTION = 1_000


class Places:
    """Who of a limited data set can be claimed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fill(self, dataset_ids: Collection[int], *, wait: bool = True) -> frozenset[RunType]:
        """Give the free places of these data sets to the next of their jobs; returns those jobs' run types.

        wait: for whoever is filling the same, which raises RowLocked after the lock limit; else that data
        set is left to upkeep/fill_places.py. Lock the jobs that are to be changed before, never after.
        """
        if not wait:
            dataset_ids = self._free(dataset_ids)
        if not dataset_ids:
            return frozenset()
        parameters = {"dataset_ids": sorted(dataset_ids)}
        if wait:
            self._connection.execute(_LOCK, parameters)
        # A statement of its own: only what begins after the lock sees what its last holder has done.
        filled = self._connection.execute(_FILL, {**parameters, "portion": _PORTION})
        return frozenset(RunType(run_type) for run_type in filled.scalars())

    def _free(self, dataset_ids: Collection[int]) -> set[int]:
        """Lock the limits that nobody else holds; returns their data sets, and those that have no limit."""
        if not dataset_ids:
            return set()
        parameters = {"dataset_ids": sorted(dataset_ids)}
        locked = set(self._connection.execute(_LOCK_FREE, parameters).scalars())
        limited = set(self._connection.execute(_LIMITED, parameters).scalars())
        return set(dataset_ids) - (limited - locked)

    def keep_running(self, dataset_id: int) -> None:
        """Let none of the data set's claims end until the transaction does.

        For the transaction that will change the limit, before it does: whoever ends a claim has the lease
        when it comes to the limit.
        """
        self._connection.execute(_KEEP_RUNNING, {"labelled_dataset_id": dataset_id})

    def relabel(self, dataset_id: int) -> None:
        """Hold all waiting jobs of a data set that has a limit now, and let go those of one that has none.

        For the transaction that has set, changed or removed the limit; fill follows. What others are just
        putting into the queue is put right when it is claimed, or by upkeep/fill_places.py.
        """
        parameters = {"labelled_dataset_id": dataset_id}
        self._connection.execute(_LOCK, {"dataset_ids": [dataset_id]})
        self._connection.execute(_RELABEL_QUEUE, parameters)
        self._connection.execute(_RELABEL_LEASES, parameters)

    def label_leases(self) -> None:
        """Count those as running that were claimed while their data set got its limit."""
        self._connection.execute(_LABEL_LEASES)

    def unfilled(self) -> frozenset[int]:
        """Return data sets that have held jobs, and a place for them: somebody has yet to fill it."""
        held = list(self._connection.execute(_HELD, {"portion": _PORTION}).scalars())
        if not held:
            return frozenset()
        found = self._connection.execute(_UNFILLED, {"dataset_ids": held, "portion": _PORTION})
        return frozenset(found.scalars())
