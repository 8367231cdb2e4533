"""Users, data sets and permissions as they are kept, and what can be changed about them."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, TypeVar

from jobs_service.model.caller import SYSTEM, Caller, Level, Role
from jobs_service.model.job import RunType

T = TypeVar("T")


class AccessEventType(StrEnum):
    """What happened. Each is recorded only where something changed."""

    USER_PUT = "USER_PUT"
    USER_DELETED = "USER_DELETED"
    DATASET_PUT = "DATASET_PUT"
    DATASET_DELETED = "DATASET_DELETED"
    DATASET_LIMITED = "DATASET_LIMITED"
    PERMISSION_GRANTED = "PERMISSION_GRANTED"
    PERMISSION_REVOKED = "PERMISSION_REVOKED"
    RUN_TYPE_GRANTED = "RUN_TYPE_GRANTED"
    RUN_TYPE_REVOKED = "RUN_TYPE_REVOKED"


class Operator(Enum):
    """Whoever runs the command line: has the database itself, so nothing is asked."""

    OPERATOR = "the command line"


OPERATOR = Operator.OPERATOR
Actor = Caller | Operator
"""Who changes what there is. Of a Caller it is checked that it may."""


def caller_of(actor: Actor) -> Caller:
    """Return the actor as the history of jobs names it: the command line is the service itself."""
    return SYSTEM if actor is OPERATOR else actor


@dataclass(frozen=True, slots=True)
class User:
    """A user, with the run types granted to it in their order."""

    user_id: int
    soeid: str
    role: Role
    run_types: tuple[RunType, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set. max_running: how many of its jobs may run at once, None for any number."""

    dataset_id: int
    name: str
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class Permission:
    """What a user may do with a data set."""

    user_id: int
    soeid: str
    dataset_id: int
    level: Level


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """What there is after a call, and whether that call has changed it."""

    now: T
    changed: bool


@dataclass(frozen=True, slots=True)
class PermissionPlace:
    """A place in the list of permissions: after this one."""

    user_id: int
    dataset_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionsRequest:
    """Show a page: page_size permissions (1..1000) after the place, of one user, on one data set, or all."""

    soeid: str | None = None
    dataset_id: int | None = None
    page_size: int = 100
    after: PermissionPlace | None = None


@dataclass(frozen=True, slots=True)
class PermissionsPage:
    """Permissions in their order. more: there are some after the last. user, dataset: those asked for."""

    permissions: list[Permission]
    more: bool
    user: User | None = None
    dataset: Dataset | None = None
