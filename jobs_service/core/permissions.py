"""Who may do what: the rules as tables, and the decisions made from them.

Every decision is about a Standing that was read in the transaction of the operation.
"""

from collections.abc import Collection
from enum import Enum

from jobs_service.model.caller import Caller, Level, Role, Standing
from jobs_service.model.errors import (
    CallerUnknown,
    DatasetNotFound,
    DatasetPermissionDenied,
    JobNotFound,
    JobPermissionDenied,
    RoleRequired,
    UserNotFound,
)
from jobs_service.model.job import Job, RunType


class Action(Enum):
    """What somebody may want to do: with a data set or a job on it, or with all of them."""

    CREATE = "create a job that writes"
    EXPLORE = "create a job that only reads"
    READ_SOURCE = "use as a source of SQL"
    SHOW = "see a job, its status and its place in lists"
    CANCEL = "cancel a job"
    RETRY = "make a job that has ended PENDING again"
    ADMINISTER = "change or see who there is and who may do what"


NEEDED_LEVEL: dict[Action, Level] = {
    Action.CREATE: Level.WRITE,
    Action.EXPLORE: Level.READ,
    Action.READ_SOURCE: Level.READ,
    Action.SHOW: Level.READ,
    Action.CANCEL: Level.WRITE,
    Action.RETRY: Level.WRITE,
}
"""The level on the data set that an action takes. The role admin needs none."""

NEEDED_ROLE: dict[Action, Role] = {
    Action.ADMINISTER: Role.ADMIN,
}
"""The role that an action takes which no level on a data set is enough for."""

OWN_JOB = frozenset({Action.SHOW, Action.CANCEL, Action.RETRY})
"""What a job's owner and its creator may do without any level."""

CREATING: dict[RunType, Action] = {
    RunType.IMPORT: Action.CREATE,
    RunType.SAMPLING: Action.CREATE,
    RunType.EXPLORATION: Action.EXPLORE,
    RunType.SQL_TRANSFORM: Action.CREATE,
}
"""What creating a job of a run type does to its data set."""

ON_BEHALF_SENDERS = frozenset({Role.SERVICE, Role.ADMIN})

WORKERS = frozenset({Role.SERVICE, Role.ADMIN})
"""Who may work on jobs: a service on those of the run types granted to it, an admin on all."""


def require_known(caller: Caller, standing: Standing) -> None:
    """Check that the caller still exists, and may call on behalf of that user if it does so.

    Raises CallerUnknown, RoleRequired, UserNotFound, in this order: only who may call on behalf of
    others learns who exists.
    """
    if standing.caller_role is None:
        raise CallerUnknown(user_soeid=caller.soeid)
    if caller.on_behalf_of is None:
        return
    if standing.caller_role not in ON_BEHALF_SENDERS:
        raise RoleRequired(required_role=Role.SERVICE.value)
    if standing.subject_role is None:
        raise UserNotFound(user_soeid=caller.subject_soeid)
    if standing.subject_role is not Role.USER:
        raise RoleRequired(required_role=Role.USER.value)


def require_worker(caller: Caller, role: Role | None) -> None:
    """Check that the caller may work on jobs at all, and does so for itself.

    role: the caller's. Raises CallerUnknown, RoleRequired, UserNotFound: only a worker learns who exists.
    """
    if role is None:
        raise CallerUnknown(user_soeid=caller.soeid)
    if role not in WORKERS:
        raise RoleRequired(required_role=Role.SERVICE.value)
    if caller.on_behalf_of is None:
        return
    if caller.on_behalf_of.user_id is None:
        raise UserNotFound(user_soeid=caller.subject_soeid)
    # The call has the permissions of a user then, and no user works.
    raise RoleRequired(required_role=Role.SERVICE.value)


def require_work(
    caller: Caller, role: Role | None, granted: Collection[RunType], asked: Collection[RunType]
) -> frozenset[RunType]:
    """Return those of the run types asked for that the caller may work on.

    Raises CallerUnknown, UserNotFound, RoleRequired, which names a run type where none of them is granted.
    """
    require_worker(caller, role)
    allowed = frozenset(asked) if role is Role.ADMIN else frozenset(asked) & frozenset(granted)
    if not allowed:
        raise RoleRequired(required_role=Role.SERVICE.value, run_type=min(asked).value)
    return allowed


def sees_everything(standing: Standing) -> bool:
    """Whether the call has the permissions of an admin. On behalf of a user it never has."""
    return standing.subject_role is Role.ADMIN


def require_role(action: Action, standing: Standing) -> None:
    """Check an action that takes a role, which on behalf of a user is that user's. Raises RoleRequired."""
    needed = NEEDED_ROLE[action]
    if standing.subject_role is not needed:
        raise RoleRequired(required_role=needed.value)


def require_dataset(action: Action, standing: Standing, dataset_id: int) -> None:
    """Check an action on a data set.

    Raises DatasetPermissionDenied whether or not the data set exists; only an admin, who may
    everything, gets DatasetNotFound.
    """
    if sees_everything(standing):
        if not standing.dataset_exists:
            raise DatasetNotFound(dataset_id=dataset_id)
    elif not _has_level(action, standing):
        raise DatasetPermissionDenied(dataset_id=dataset_id, required_permission=NEEDED_LEVEL[action].word)


def require_job(action: Action, caller: Caller, standing: Standing, job: Job | None, job_id: object) -> Job:
    """Check an action on a job and return the job.

    Raises JobNotFound, the same whether it does not exist or is not visible, and
    JobPermissionDenied for what is visible only.
    """
    if job is None or not _may(Action.SHOW, caller, standing, job):
        raise JobNotFound(job_id=job_id)
    if not _may(action, caller, standing, job):
        raise JobPermissionDenied(job_id=job_id, required_permission=NEEDED_LEVEL[action].word)
    return job


def works_on(role: Role | None, granted: Collection[RunType], run_type: RunType) -> bool:
    """Whether jobs of this run type are the worker's to know of."""
    return role is Role.ADMIN or run_type in granted


def _may(action: Action, caller: Caller, standing: Standing, job: Job) -> bool:
    is_own = action in OWN_JOB and caller.subject_id in (job.owner_id, job.creator_id)
    return is_own or sees_everything(standing) or _has_level(action, standing)


def _has_level(action: Action, standing: Standing) -> bool:
    return standing.level is not None and standing.level >= NEEDED_LEVEL[action]
