"""What a list asks of a job: the conditions of a filter, who may see it, and its place in the order."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Select,
    Text,
    Uuid,
    bindparam,
    func,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.job import JobStatus
from jobs_service.model.requests import JobFilter
from jobs_service.model.states import ACTIVE
from jobs_service.storage.tables import dataset_permissions, jobs

VIEWER: ColumnElement[int] = bindparam("viewer", type_=BigInteger)
DEPTH: ColumnElement[int] = bindparam("depth", type_=Integer)
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
class Shape:
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
    def of(cls, wanted: JobFilter) -> "Shape":
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
        """Whether there is an index that leaves little to read, whoever asks."""
        return self.owner or self.external or bool(self.groups)

    def one_group_each(self) -> "list[Shape]":
        """The same shape for one group after the other; together they find the same, none twice."""
        # Only of the active is a part ever wanted.
        parts = [replace(self, groups=(g,), statuses=self.statuses and g == _ACTIVE) for g in self.groups]
        return parts or [self]


def matching(shape: Shape, row: FromClause = jobs) -> list[ColumnElement[bool]]:
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


def visible(row: FromClause = jobs) -> ColumnElement[bool]:
    permitted = select(dataset_permissions.c.dataset_id).where(dataset_permissions.c.user_id == VIEWER)
    return or_(row.c.owner_id == VIEWER, row.c.creator_id == VIEWER, row.c.dataset_id.in_(permitted))


def newest_first(row: FromClause) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return row.c.create_time.desc(), row.c.job_id.desc()


def newest(*conditions: ColumnElement[bool], depth: ColumnElement[int] = DEPTH) -> Select[Any]:
    """The keys of the newest jobs after the cursor, depth of them."""
    after = tuple_(jobs.c.create_time, jobs.c.job_id) < tuple_(
        bindparam("after_time", type_=_moment), bindparam("after_id", type_=Uuid)
    )
    keys = select(jobs.c.create_time, jobs.c.job_id).where(after, *conditions)
    return keys.order_by(*newest_first(jobs)).limit(depth)


def made_for_others(creator: ColumnElement[int] = VIEWER) -> ColumnElement[bool]:
    # The second half is the condition of the creator's index.
    return (jobs.c.creator_id == creator) & (jobs.c.creator_id != jobs.c.owner_id)
