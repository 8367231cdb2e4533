"""Jobs chosen by a filter, for a call that changes many at once."""

from dataclasses import replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Select, or_, select

from jobs_service.model.caller import Level
from jobs_service.model.requests import JobFilter
from jobs_service.model.states import ACTIVE
from jobs_service.storage.job_filter import VIEWER, Shape, matching, newest
from jobs_service.storage.job_list import first_place, values
from jobs_service.storage.tables import dataset_permissions, jobs

_writable = select(dataset_permissions.c.dataset_id).where(
    dataset_permissions.c.user_id == VIEWER,
    dataset_permissions.c.level.in_([level.word for level in Level if level >= Level.WRITE]),
)
_may_cancel = or_(jobs.c.owner_id == VIEWER, jobs.c.creator_id == VIEWER, jobs.c.dataset_id.in_(_writable))


class JobChoice:
    """Which jobs a call is about. actor: the user whose permissions count; None may everything."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def cancellable(self, actor: int | None, wanted: JobFilter, *, limit: int) -> list[UUID]:
        """Return up to limit jobs, newest first, that are PENDING or RUNNING and theirs to cancel.

        It reads no more than the jobs that are PENDING or RUNNING, however many have ended.
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


@lru_cache(maxsize=1024)
def _cancellable(shape: Shape, every: bool) -> Select[Any]:
    return newest(*([] if every else [_may_cancel]), *matching(shape))
