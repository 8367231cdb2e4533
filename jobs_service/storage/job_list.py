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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    FromClause,
    Integer,
    Select,
    Text,
    Uuid,
    bindparam,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.job import Job, JobStatus, JobView, JsonObject
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.model.states import ACTIVE
from jobs_service.storage.job_rows import COLUMNS, job_of, with_names
from jobs_service.storage.tables import dataset_permissions, jobs

TOTAL_CAP = 10_000
"""Totals are counted up to here."""

_WINDOW = 2_000
# Whoever reads many data sets finds a page in this many rows or sees very little: dearer for all others.
_LARGE_WINDOW = 50_000
_MANY = 1_000
_NEWEST = Cursor(datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))

_viewer: ColumnElement[int] = bindparam("viewer", type_=BigInteger)
_depth: ColumnElement[int] = bindparam("depth", type_=Integer)
_moment = DateTime(timezone=True)


_ACTIVE = "active"
_FAILED = "failed"
_CANCELLED = "cancelled"
# How to say a group of statuses so that its partial index is used, and read alone: no index names status.
_GROUPS: dict[str, tuple[frozenset[JobStatus], ColumnElement[bool]]] = {
    _ACTIVE: (ACTIVE, jobs.c.end_time.is_(None)),
    _FAILED: (frozenset({JobStatus.FAILED}), jobs.c.error_type.is_not(None)),
    _CANCELLED: (frozenset({JobStatus.CANCELLED}), jobs.c.cancelled_by_soeid.is_not(None)),
}


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which conditions a statement has: everything about a filter but its values.

    groups: where the statuses have indexes of their own, those of _GROUPS to look in.
    """

    owner: bool
    dataset: bool
    statuses: bool
    run_types: bool
    external: bool
    time_from: bool
    time_to: bool
    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, wanted: JobFilter) -> "_Shape":
        touched = {name: group & wanted.statuses for name, (group, _) in _GROUPS.items()}
        grouped = JobStatus.COMPLETED not in wanted.statuses
        # A group that is wanted whole says it all by itself.
        whole = grouped and all(found in (set(), _GROUPS[name][0]) for name, found in touched.items())
        return cls(
            owner=wanted.owner_id is not None,
            dataset=wanted.dataset_id is not None,
            statuses=bool(wanted.statuses) and not whole,
            run_types=bool(wanted.run_types),
            external=wanted.external_id is not None,
            time_from=wanted.create_time_from is not None,
            time_to=wanted.create_time_to is not None,
            groups=tuple(name for name, found in touched.items() if found and grouped),
        )

    @property
    def narrow(self) -> bool:
        return self.owner or self.external or bool(self.groups)


def _matching(shape: _Shape, row: FromClause = jobs) -> list[ColumnElement[bool]]:
    conditions = [
        (shape.owner, row.c.owner_id == bindparam("owner", type_=BigInteger)),
        (shape.dataset, row.c.dataset_id == bindparam("dataset", type_=BigInteger)),
        (shape.statuses, row.c.status == func.any(bindparam("statuses", type_=ARRAY(Text)))),
        (shape.run_types, row.c.run_type == func.any(bindparam("run_types", type_=ARRAY(Text)))),
        (shape.external, row.c.external_id == bindparam("external", type_=Text)),
        (shape.time_from, row.c.create_time >= bindparam("time_from", type_=_moment)),
        (shape.time_to, row.c.create_time < bindparam("time_to", type_=_moment)),
    ]
    groups = [or_(*(_GROUPS[name][1] for name in shape.groups))] if shape.groups else []
    return [condition for wanted, condition in conditions if wanted] + groups


def _visible(row: FromClause = jobs) -> ColumnElement[bool]:
    permitted = select(dataset_permissions.c.dataset_id).where(dataset_permissions.c.user_id == _viewer)
    return or_(row.c.owner_id == _viewer, row.c.creator_id == _viewer, row.c.dataset_id.in_(permitted))


def _order(row: FromClause) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return row.c.create_time.desc(), row.c.job_id.desc()


def _newest(*conditions: ColumnElement[bool], depth: ColumnElement[int] = _depth) -> Select[Any]:
    """The keys of the newest jobs after the cursor, depth of them."""
    after = tuple_(jobs.c.create_time, jobs.c.job_id) < tuple_(
        bindparam("after_time", type_=_moment), bindparam("after_id", type_=Uuid)
    )
    keys = select(jobs.c.create_time, jobs.c.job_id).where(after, *conditions)
    return keys.order_by(*_order(jobs)).limit(depth)


def _among_the_newest(shape: _Shape, rows: int = _WINDOW) -> Select[Any]:
    """The keys wanted among the newest rows of all: reads a window, however little it finds."""
    bounds = _matching(_Shape(*(False,) * 5, shape.time_from, shape.time_to))
    columns: list[Column[Any]] = [
        jobs.c.owner_id,
        jobs.c.creator_id,
        jobs.c.dataset_id,
        jobs.c.status,
        jobs.c.run_type,
        jobs.c.external_id,
    ]
    window = _newest(*bounds, depth=literal(rows)).add_columns(*columns).subquery("newest")
    wanted = select(window.c.create_time, window.c.job_id).where(_visible(window), *_matching(shape, window))
    return wanted.order_by(*_order(window)).limit(_depth)


def _among_more(shape: _Shape) -> Select[Any]:
    return _among_the_newest(shape, _LARGE_WINDOW)


def _from_each_index(shape: _Shape) -> Select[Any]:
    """The keys wanted, merged from the owner's, the creator's and the data sets' own order."""
    matching = _matching(shape)
    permitted = (
        select(dataset_permissions.c.dataset_id)
        .where(dataset_permissions.c.user_id == _viewer)
        .cte("permitted")
    )
    # Only the data sets with the newest jobs can contribute to a page: as many as it is deep.
    head = _newest(jobs.c.dataset_id == permitted.c.dataset_id, *matching, depth=literal(1)).lateral("head")
    heads = (
        select(permitted.c.dataset_id)
        .select_from(permitted.join(head, true()))
        .order_by(*_order(head))
        .limit(_depth)
        .cte("heads")
    )
    of_dataset = _newest(jobs.c.dataset_id == heads.c.dataset_id, *matching).lateral("of_dataset")
    of_datasets = (
        select(of_dataset.c.create_time, of_dataset.c.job_id)
        .select_from(heads.join(of_dataset, true()))
        .order_by(*_order(of_dataset))
        .limit(_depth)
    )
    merged = union(
        _newest(jobs.c.owner_id == _viewer, *matching).subquery().select(),
        _newest(_made_for_others(), *matching).subquery().select(),
        of_datasets.subquery().select(),
    ).subquery("merged")
    return select(merged).order_by(*_order(merged)).limit(_depth)


def _made_for_others() -> ColumnElement[bool]:
    # The second half is the condition of the creator's index.
    return (jobs.c.creator_id == _viewer) & (jobs.c.creator_id != jobs.c.owner_id)


@lru_cache(maxsize=1024)
def _page(keys: Any, shape: _Shape, view: JobView) -> Select[Any]:
    """The rows of a page in order, from the keys that the function finds, less those skipped."""
    page = keys(shape).limit(bindparam("limit", type_=Integer)).offset(bindparam("skip", type_=Integer))
    key = page.subquery("key")
    rows = select(*COLUMNS[view]).select_from(with_names(key.join(jobs, jobs.c.job_id == key.c.job_id)))
    return rows.order_by(*_order(key))


def _all_matching(shape: _Shape) -> Select[Any]:
    return _in_each_group(shape)


def _visible_matching(shape: _Shape) -> Select[Any]:
    return _in_each_group(shape, _visible())


def _own_matching(shape: _Shape) -> Select[Any]:
    """The keys of the viewer's own jobs, from the owner's and the creator's order."""
    matching = _matching(shape)
    merged = union_all(
        _newest(jobs.c.owner_id == _viewer, *matching).subquery().select(),
        _newest(_made_for_others(), jobs.c.owner_id != _viewer, *matching).subquery().select(),
    ).subquery("own")
    return select(merged).order_by(*_order(merged)).limit(_depth)


def _in_each_group(shape: _Shape, *conditions: ColumnElement[bool]) -> Select[Any]:
    """The keys from the one index, or merged from those of several groups of statuses."""
    parts = [_newest(*conditions, *_matching(one)) for one in _one_group_each(shape)]
    if len(parts) == 1:
        return parts[0]
    merged = union_all(*(part.subquery().select() for part in parts)).subquery("merged")
    return select(merged).order_by(*_order(merged)).limit(_depth)


def _one_group_each(shape: _Shape) -> list[_Shape]:
    # Only of the active is a part ever wanted.
    parts = [replace(shape, groups=(g,), statuses=shape.statuses and g == _ACTIVE) for g in shape.groups]
    return parts or [shape]


@lru_cache(maxsize=1024)
def _count(parts: Any, shape: _Shape) -> Select[Any]:
    """How many there are in these parts, which share no row; stops at the cap."""
    found = [select(part.subquery().c.job_id) for part in parts(shape)]
    return select(func.count()).select_from(union_all(*found).limit(literal(TOTAL_CAP)).subquery())


def _ids(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(jobs.c.job_id).where(*conditions).limit(literal(TOTAL_CAP))


def _all_parts(shape: _Shape) -> list[Select[Any]]:
    return [_ids(*_matching(one)) for one in _one_group_each(shape)]


def _visible_parts(shape: _Shape) -> list[Select[Any]]:
    return [_ids(_visible(), *_matching(one)) for one in _one_group_each(shape)]


def _own_parts(shape: _Shape) -> list[Select[Any]]:
    matching = _matching(shape)
    return [
        _ids(jobs.c.owner_id == _viewer, *matching),
        _ids(_made_for_others(), jobs.c.owner_id != _viewer, *matching),
    ]


def _source_parts(shape: _Shape) -> list[Select[Any]]:
    """His own, and those of each data set: nothing has to be sorted or hashed to count them."""
    # The limit within each data set is what makes the planner use that data set's index.
    in_dataset = _ids(
        jobs.c.dataset_id == dataset_permissions.c.dataset_id,
        jobs.c.owner_id != _viewer,
        jobs.c.creator_id != _viewer,
        *_matching(shape),
    ).lateral("in_dataset")
    of_datasets = (
        select(in_dataset.c.job_id)
        .select_from(dataset_permissions.join(in_dataset, true()))
        .where(dataset_permissions.c.user_id == _viewer)
    )
    return [*_own_parts(shape), of_datasets]


_MAY_READ = select(dataset_permissions.c.dataset_id).where(
    dataset_permissions.c.user_id == _viewer,
    dataset_permissions.c.dataset_id == bindparam("dataset", type_=BigInteger),
)
_PERMISSIONS = select(func.count()).select_from(
    select(dataset_permissions.c.dataset_id)
    .where(dataset_permissions.c.user_id == _viewer)
    .limit(literal(_MANY))
    .subquery()
)
_payload_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_PAYLOADS = select(jobs.c.job_id, jobs.c.run_parameters, jobs.c.output_summary).where(
    jobs.c.job_id == func.any(_payload_ids)
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
        shape = replace(_Shape.of(wanted), time_to=False)
        after = _first_place(wanted, cursor)
        parameters = _values(viewer, wanted) | {
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
        shape = _Shape.of(wanted)
        if self._sees_all(viewer, wanted):
            parts: Any = _all_parts
        elif shape.dataset:
            parts = _own_parts
        else:
            parts = _visible_parts if shape.narrow else _source_parts
        return int(self._connection.execute(_count(parts, shape), _values(viewer, wanted)).scalar_one())

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

    def payloads(self, job_ids: Sequence[UUID]) -> dict[UUID, tuple[JsonObject, JsonObject | None]]:
        """Return run_parameters and output_summary of these jobs."""
        found = self._connection.execute(_PAYLOADS, {"job_ids": list(job_ids)})
        return {row.job_id: (row.run_parameters, row.output_summary) for row in found}


def _first_place(wanted: JobFilter, cursor: Cursor | None) -> Cursor:
    """Where a page begins: after the cursor, and before create_time_to."""
    places = [_NEWEST, *([cursor] if cursor else [])]
    if wanted.create_time_to is not None:
        places.append(Cursor(wanted.create_time_to, UUID(int=0)))
    return min(places, key=lambda place: (place.create_time, place.job_id))


def _values(viewer: int | None, wanted: JobFilter) -> dict[str, Any]:
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
