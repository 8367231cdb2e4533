"""Jobs chosen by a filter, for a call that changes many at once."""

from dataclasses import replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ColumnElement, Connection, FromClause, Select, literal, or_, select

from jobs_service.model.caller import Level
from jobs_service.model.requests import JobFilter
from jobs_service.model.states import ACTIVE
from jobs_service.storage.job_filter import DEPTH, VIEWER, Shape, matching, newest, newest_first
from jobs_service.storage.job_list import first_place, values
from jobs_service.storage.tables import dataset_permissions, jobs

_writable = select(dataset_permissions.c.dataset_id).where(
    dataset_permissions.c.user_id == VIEWER,
    dataset_permissions.c.level.in_([level.word for level in Level if level >= Level.WRITE]),
)
_COLUMNS: list[Column[Any]] = [
    jobs.c.owner_id,
    jobs.c.creator_id,
    jobs.c.dataset_id,
    jobs.c.status,
    jobs.c.run_type,
    jobs.c.external_id,
]


class JobChoice:
    """Which jobs a call is about. actor: the user whose permissions count; None may everything."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def cancellable(self, actor: int | None, wanted: JobFilter, *, limit: int) -> list[UUID]:
        """Return up to limit jobs, newest first, that are PENDING or RUNNING and theirs to cancel.

        However many have ended, about as many are read as have not.
        """
        statuses = ACTIVE & (wanted.statuses or ACTIVE)
        if not statuses:
            return []
        wanted = replace(wanted, statuses=statuses)
        # As a place to begin at, see JobList.newest.
        shape = replace(Shape.of(wanted), time_to=False)
        before = first_place(wanted, None)
        place = {"after_time": before.create_time, "after_id": before.job_id, "depth": limit}
        every = actor is None or wanted.owner_id == actor
        found = self._connection.execute(_cancellable(shape, every), values(actor, wanted) | place)
        return [row.job_id for row in found]


def _may_cancel(row: FromClause) -> ColumnElement[bool]:
    return or_(row.c.owner_id == VIEWER, row.c.creator_id == VIEWER, row.c.dataset_id.in_(_writable))


@lru_cache(maxsize=1024)
def _cancellable(shape: Shape, every: bool) -> Select[Any]:
    if shape.owner + shape.dataset + shape.external < 2:
        return newest(*([] if every else [_may_cancel(jobs)]), *matching(shape))
    # Of two such conditions the planner multiplies the shares: it would take what meets both for so
    # little that it reads all that ever met one, ended or not.
    every_active = newest(*matching(Shape(*(False,) * 7, shape.groups))).add_columns(*_COLUMNS)
    active = every_active.order_by(None).limit(None).offset(literal(0)).subquery("active")
    conditions = [*([] if every else [_may_cancel(active)]), *matching(replace(shape, groups=()), active)]
    chosen = select(active.c.create_time, active.c.job_id).where(*conditions)
    return chosen.order_by(*newest_first(active)).limit(DEPTH)
