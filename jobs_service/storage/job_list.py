"""Lists of jobs: the newest that a caller may see and that match a filter, and how many there are.

A job is visible to its owner, its creator, and whoever has any permission on its data set. Written
as one OR this reads the whole table for somebody who sees little of it, so there are three shapes:

- everything: an admin needs no visibility at all, nor does who asks for his own jobs or those of a
  data set that he may read; of any other data set there are only his own;
- narrow: the filter has an index that leaves little to read (an owner, an external id, a status
  other than COMPLETED), and the OR is checked in that index;
- wide: first the newest rows of all, where whoever sees much finds a page at once; only if they
  don't give one, the newest rows of the owner, of the creator and of each data set, merged.
"""

from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    func,
    literal,
    select,
    true,
    union,
    union_all,
)

from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.storage.job_filter import (
    DEPTH,
    VIEWER,
    Shape,
    made_for_others,
    matching,
    newest,
    newest_first,
    visible,
)
from jobs_service.storage.job_rows import COLUMNS, job_of
from jobs_service.storage.tables import dataset_permissions, jobs

TOTAL_CAP = 10_000
"""Totals are counted up to here."""

_WINDOW = 2_000
# Whoever reads many data sets finds a page in this many rows or sees very little: dearer for all others.
_LARGE_WINDOW = 50_000
_MANY = 1_000
_LAST = Cursor(datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


def _among_the_newest(shape: Shape, rows: int = _WINDOW) -> Select[Any]:
    """The keys wanted among the newest rows of all: reads a window, however little it finds."""
    bounds = matching(Shape(*(False,) * 5, shape.time_from, shape.time_to))
    columns: list[Column[Any]] = [
        jobs.c.owner_id,
        jobs.c.creator_id,
        jobs.c.dataset_id,
        jobs.c.status,
        jobs.c.run_type,
        jobs.c.external_id,
    ]
    window = newest(*bounds, depth=literal(rows)).add_columns(*columns).subquery("newest")
    wanted = select(window.c.create_time, window.c.job_id).where(visible(window), *matching(shape, window))
    return wanted.order_by(*newest_first(window)).limit(DEPTH)


def _among_more(shape: Shape) -> Select[Any]:
    return _among_the_newest(shape, _LARGE_WINDOW)


def _from_each_index(shape: Shape) -> Select[Any]:
    """The keys wanted, merged from the owner's, the creator's and the data sets' own order."""
    matches = matching(shape)
    permitted = (
        select(dataset_permissions.c.dataset_id)
        .where(dataset_permissions.c.user_id == VIEWER)
        .cte("permitted")
    )
    # Only the data sets with the newest jobs can contribute to a page: as many as it is deep.
    head = newest(jobs.c.dataset_id == permitted.c.dataset_id, *matches, depth=literal(1)).lateral("head")
    heads = (
        select(permitted.c.dataset_id)
        .select_from(permitted.join(head, true()))
        .order_by(*newest_first(head))
        .limit(DEPTH)
        .cte("heads")
    )
    of_dataset = newest(jobs.c.dataset_id == heads.c.dataset_id, *matches).lateral("of_dataset")
    of_datasets = (
        select(of_dataset.c.create_time, of_dataset.c.job_id)
        .select_from(heads.join(of_dataset, true()))
        .order_by(*newest_first(of_dataset))
        .limit(DEPTH)
    )
    merged = union(
        newest(jobs.c.owner_id == VIEWER, *matches).subquery().select(),
        newest(made_for_others(), *matches).subquery().select(),
        of_datasets.subquery().select(),
    ).subquery("merged")
    return select(merged).order_by(*newest_first(merged)).limit(DEPTH)


@lru_cache(maxsize=1024)
def _page(keys: Any, shape: Shape, view: JobView) -> Select[Any]:
    """The rows of a page in order, from the keys that the function finds, less those skipped."""
    page = keys(shape).limit(bindparam("limit", type_=Integer)).offset(bindparam("skip", type_=Integer))
    key = page.subquery("key")
    rows = select(*COLUMNS[view]).select_from(key.join(jobs, jobs.c.job_id == key.c.job_id))
    return rows.order_by(*newest_first(key))


def _all_matching(shape: Shape) -> Select[Any]:
    return _in_each_group(shape)


def _visible_matching(shape: Shape) -> Select[Any]:
    return _in_each_group(shape, visible())


def _own_matching(shape: Shape) -> Select[Any]:
    """The keys of the viewer's own jobs, from the owner's and the creator's order."""
    matches = matching(shape)
    merged = union_all(
        newest(jobs.c.owner_id == VIEWER, *matches).subquery().select(),
        newest(made_for_others(), jobs.c.owner_id != VIEWER, *matches).subquery().select(),
    ).subquery("own")
    return select(merged).order_by(*newest_first(merged)).limit(DEPTH)


def _in_each_group(shape: Shape, *conditions: ColumnElement[bool]) -> Select[Any]:
    """The keys from the one index, or merged from those of several groups of statuses."""
    parts = [newest(*conditions, *matching(one)) for one in shape.one_group_each()]
    if len(parts) == 1:
        return parts[0]
    merged = union_all(*(part.subquery().select() for part in parts)).subquery("merged")
    return select(merged).order_by(*newest_first(merged)).limit(DEPTH)


@lru_cache(maxsize=1024)
def _count(parts: Any, shape: Shape) -> Select[Any]:
    """How many there are in these parts, which share no row; stops at the cap."""
    found = [select(part.subquery().c.job_id) for part in parts(shape)]
    return select(func.count()).select_from(union_all(*found).limit(literal(TOTAL_CAP)).subquery())


def _ids(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(jobs.c.job_id).where(*conditions).limit(literal(TOTAL_CAP))


def _all_parts(shape: Shape) -> list[Select[Any]]:
    return [_ids(*matching(one)) for one in shape.one_group_each()]


def _visible_parts(shape: Shape) -> list[Select[Any]]:
    return [_ids(visible(), *matching(one)) for one in shape.one_group_each()]


def _own_parts(shape: Shape) -> list[Select[Any]]:
    matches = matching(shape)
    # Without its value: by that, who owns much seems to make as much for others, and all jobs were read.
    viewer = select(VIEWER).scalar_subquery()
    return [
        _ids(jobs.c.owner_id == VIEWER, *matches),
        _ids(made_for_others(viewer), jobs.c.owner_id != VIEWER, *matches),
    ]


def _source_parts(shape: Shape) -> list[Select[Any]]:
    """His own, and those of each data set: nothing has to be sorted or hashed to count them."""
    # The limit within each data set is what makes the planner use that data set's index.
    in_dataset = _ids(
        jobs.c.dataset_id == dataset_permissions.c.dataset_id,
        jobs.c.owner_id != VIEWER,
        jobs.c.creator_id != VIEWER,
        *matching(shape),
    ).lateral("in_dataset")
    of_datasets = (
        select(in_dataset.c.job_id)
        .select_from(dataset_permissions.join(in_dataset, true()))
        .where(dataset_permissions.c.user_id == VIEWER)
    )
    return [*_own_parts(shape), of_datasets]


_MAY_READ = select(dataset_permissions.c.dataset_id).where(
    dataset_permissions.c.user_id == VIEWER,
    dataset_permissions.c.dataset_id == bindparam("dataset", type_=BigInteger),
)
_PERMISSIONS = select(func.count()).select_from(
    select(dataset_permissions.c.dataset_id)
    .where(dataset_permissions.c.user_id == VIEWER)
    .limit(literal(_MANY))
    .subquery()
)


class JobList:
    """Pages and totals. viewer: the user whose permissions count; None sees everything."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def newest(
        self, viewer: int | None, wanted: JobFilter, *, cursor: Cursor | None, skip: int, limit: int
    ) -> list[Job]:
        """Return up to limit jobs after the cursor, newest first, skip of them left out; BASIC."""
        # As a place to begin at: as one more condition it would be checked on every newer row.
        shape = replace(Shape.of(wanted), time_to=False)
        after = first_place(wanted, cursor)
        parameters = values(viewer, wanted) | {
            "after_time": after.create_time,
            "after_id": after.job_id,
            "depth": skip + limit,
            "limit": limit,
            "skip": skip,
        }

        def page(keys: Any) -> list[Job]:
            rows = self._connection.execute(_page(keys, shape, JobView.BASIC), parameters)
            return [job_of(row) for row in rows]

        if self._sees_all(viewer, wanted):
            return page(_all_matching)
        if shape.dataset:
            return page(_own_matching)
        if shape.narrow:
            return page(_visible_matching)
        found = page(_among_the_newest)
        if len(found) < limit and self._reads_many(viewer):
            found = page(_among_more)
        return found if len(found) == limit else page(_from_each_index)

    def total(self, viewer: int | None, wanted: JobFilter) -> int:
        """Count the jobs that newest would give without a limit; TOTAL_CAP means that many or more."""
        shape = Shape.of(wanted)
        if self._sees_all(viewer, wanted):
            parts: Any = _all_parts
        elif shape.dataset:
            parts = _own_parts
        else:
            parts = _visible_parts if shape.narrow else _source_parts
        return int(self._connection.execute(_count(parts, shape), values(viewer, wanted)).scalar_one())

    def _sees_all(self, viewer: int | None, wanted: JobFilter) -> bool:
        """Whether every job that matches is visible: then none has to be looked at for that."""
        if viewer is None or wanted.owner_id == viewer:
            return True
        if wanted.dataset_id is None:
            return False
        asked = {"viewer": viewer, "dataset": wanted.dataset_id}
        return self._connection.execute(_MAY_READ, asked).first() is not None

    def _reads_many(self, viewer: int | None) -> bool:
        return bool(self._connection.execute(_PERMISSIONS, {"viewer": viewer}).scalar_one() == _MANY)


def first_place(wanted: JobFilter, cursor: Cursor | None) -> Cursor:
    """Where a page begins: after the cursor, and before create_time_to."""
    places = [_LAST, *([cursor] if cursor else [])]
    if wanted.create_time_to is not None:
        places.append(Cursor(wanted.create_time_to, UUID(int=0)))
    return min(places, key=lambda place: (place.create_time, place.job_id))


def values(viewer: int | None, wanted: JobFilter) -> dict[str, Any]:
    """The parameters of a statement whose conditions are those of job_filter."""
    return {
        "viewer": viewer,
        "owner": wanted.owner_id,
        "dataset": wanted.dataset_id,
        "statuses": sorted(wanted.statuses),
        "run_types": sorted(wanted.run_types),
        "external": wanted.external_id,
        "time_from": wanted.create_time_from,
        "time_to": wanted.create_time_to,
    }
