"""Every method of the stores, called for any number, and what it may read for that."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs_service.model.caller import Caller, Level, Role
from jobs_service.model.job import JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import GetRequest
from jobs_service.model.states import EventType
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.dependency_store import PICKED, Ended
from jobs_service.storage.event_store import Event
from jobs_service.storage.job_insert import JobInsert
from jobs_service.storage.unheard_ends import NEWEST
from tests.support.full_database import Full
from tests.support.million import HOT_DATASET, HOT_OWNER

_NAMES = frozenset({"pk_users", "pk_datasets"})
_ACCESS = _NAMES | {"pk_dataset_permissions"}


@dataclass(frozen=True, slots=True)
class Case:
    """A store's method: how it is called for n, by which indexes it reads, how many rows for each of n."""

    send: Callable[..., object]
    indexes: frozenset[str | None]
    rows: int


def _new(n: int) -> list[JobInsert]:
    job = NewJob(
        dataset_id=HOT_DATASET,
        run_type=RunType.IMPORT,
        run_parameters={},
        payload_bytes=2,
        request_hash=b"0" * 32,
        request_id=uuid.uuid4(),
    )
    return [JobInsert(uuid.uuid4(), owner, owner, job) for owner in range(1, n + 1)]


def _events(full: Full, n: int) -> list[Event]:
    moment = datetime.now(UTC)
    return [
        Event(EventType.CREATED, job_id, RunType.IMPORT, full.caller, None, JobStatus.PENDING, moment)
        for job_id in full.job_ids[:n]
    ]


def _finding(view: JobView) -> Case:
    return Case(
        lambda full, tx, n: tx.jobs.find([GetRequest(full.caller, one) for one in full.job_ids[:n]], view),
        _ACCESS | _WAITS | _CLAIMS | {"pk_jobs"},
        # One of ten that are active waits for five others.
        19,
    )


def _reading(view: JobView) -> Case:
    return Case(lambda full, tx, n: tx.jobs.read(full.active[:n], view), _BY_ID, 16)


def _questions(n: int) -> list[StandingQuestion]:
    return [StandingQuestion(Caller(f"mi{one:05}", one), one) for one in range(1, n + 1)]


def _asked(full: Full, n: int) -> list[tuple[int, uuid.UUID]]:
    return [(HOT_OWNER, job_id) for job_id in full.job_ids[:n]]


_WAITS = frozenset({"pk_job_dependencies"})
_CLAIMS = frozenset({"pk_job_attempts", "pk_job_leases"})
_BY_ID = _NAMES | _WAITS | _CLAIMS | {"pk_jobs"}
_DEPENDENCIES = {
    "visible": Case(lambda full, tx, n: tx.dependencies.visible(_asked(full, n)), _ACCESS | {"pk_jobs"}, 4),
    "share": Case(
        lambda full, tx, n: tx.dependencies.share(full.active[:n], wait=True), frozenset({"pk_jobs"}), 1
    ),
    "share free": Case(
        lambda full, tx, n: tx.dependencies.share(full.active[:n], wait=False), frozenset({"pk_jobs"}), 1
    ),
    "insert": Case(
        lambda full, tx, n: tx.dependencies.insert({uuid.uuid4(): full.active[:n]}), frozenset(), 0
    ),
    "unfinished": Case(
        lambda full, tx, n: tx.dependencies.unfinished(full.waiting[:n]), _WAITS | {"pk_jobs"}, 10
    ),
    "dependants": Case(
        lambda full, tx, n: tx.dependencies.dependants([Ended(one) for one in full.ended[:n]], limit=101),
        frozenset({"ix_job_dependencies_depends_on_job_id_job_id", "pk_jobs"}),
        # One of them has 10,000.
        202,
    ),
    "lock_free": Case(
        lambda full, tx, n: tx.dependencies.lock_free(full.active[:n]), frozenset({"pk_jobs"}), 1
    ),
    "existing": Case(
        lambda full, tx, n: tx.dependencies.existing(full.active[:n]), frozenset({"pk_jobs"}), 1
    ),
    "advance": Case(
        lambda full, tx, n: tx.dependencies.advance(dict.fromkeys(full.waiting[:n], 1)),
        _WAITS | {"pk_jobs", "pk_job_queue"},
        13,
    ),
    "pick": Case(
        lambda full, tx, n: tx.dependencies.pick(after=full.ended[0]),
        frozenset({"pk_ended_dependencies"}),
        # As many as one portion takes, whatever n.
        PICKED,
    ),
    "leave": Case(
        lambda full, tx, n: tx.dependencies.leave([Ended(one) for one in full.ended[:n]]), frozenset(), 0
    ),
    "drop": Case(
        lambda full, tx, n: tx.dependencies.drop(full.ended[:n]), frozenset({"pk_ended_dependencies"}), 1
    ),
}
_ACCESS_CHANGES = {
    # Any user will do.
    "is_empty": Case(lambda _, tx, n: tx.access.is_empty(), frozenset({"pk_users", None}), 1),
    "lock": Case(lambda _, tx, n: tx.access.lock(), frozenset(), 0),
    "put_user": Case(lambda _, tx, n: tx.access.put_user(f"mi{n:05}", Role.USER), frozenset(), 0),
    "put_dataset": Case(lambda _, tx, n: tx.access.put_dataset(n, "renamed"), frozenset(), 0),
    "delete_user": Case(
        lambda _, tx, n: tx.access.delete_user(f"mi{n:05}"), frozenset({"uq_users_soeid"}), 1
    ),
    "delete_dataset": Case(lambda _, tx, n: tx.access.delete_dataset(n), frozenset({"pk_datasets"}), 1),
    "set_limit": Case(lambda _, tx, n: tx.access.set_limit(n, 5), frozenset(), 0),
    "set_limit away": Case(
        lambda _, tx, n: tx.access.set_limit(n, None), frozenset({"pk_dataset_limits", None}), 0
    ),
    "grant": Case(lambda _, tx, n: tx.access.grant(n, HOT_DATASET, Level.READ), frozenset(), 0),
    "revoke": Case(
        lambda _, tx, n: tx.access.revoke(n, HOT_DATASET), frozenset({"pk_dataset_permissions"}), 1
    ),
    "grant_run_type": Case(lambda _, tx, n: tx.access.grant_run_type(n, RunType.IMPORT), frozenset(), 0),
    "revoke_run_type": Case(
        lambda _, tx, n: tx.access.revoke_run_type(n, RunType.IMPORT),
        # Nothing is granted here.
        frozenset({"pk_run_type_grants", None}),
        0,
    ),
}
CASES = {
    **{f"AccessStore.{name}": case for name, case in _ACCESS_CHANGES.items()},
    **{f"DependencyStore.{name}": case for name, case in _DEPENDENCIES.items()},
    **{f"JobStore.find {view.name}": _finding(view) for view in JobView},
    "JobStore.insert": Case(
        lambda _, tx, n: tx.jobs.insert(_new(n)),
        # No data set has a limit here: their table is empty.
        frozenset({"ix_job_queue_last_turn", "pk_dataset_limits", None}),
        1,
    ),
    "JobStore.by_request_ids": Case(
        lambda full, tx, n: tx.jobs.by_request_ids(full.keys[:n]), _BY_ID | {"uq_jobs_request_id"}, 16
    ),
    "JobStore.lock": Case(lambda full, tx, n: tx.jobs.lock(full.active[:n], wait=True), _BY_ID, 16),
    "JobStore.lock free": Case(lambda full, tx, n: tx.jobs.lock(full.active[:n], wait=False), _BY_ID, 16),
    **{f"JobStore.read {view.name}": _reading(view) for view in JobView},
    "JobStore.cancel": Case(
        lambda full, tx, n: tx.jobs.cancel(dict.fromkeys(full.active[:n], ("mi00007", None))),
        frozenset({"pk_jobs"}),
        1,
    ),
    "UnheardEnds.note": Case(
        lambda _, tx, n: tx.unheard_ends.note(NEWEST, n),
        _WAITS | {"pk_jobs", "ix_jobs_active_newest"},
        # A job with ten dependencies reads each of them, and its row there.
        21,
    ),
    "EventStore.append": Case(lambda full, tx, n: tx.events.append(_events(full, n)), frozenset(), 0),
    "AccessStore.standings": Case(lambda _, tx, n: tx.access.standings(_questions(n)), _ACCESS, 4),
    "AccessStore.keep_datasets": Case(
        lambda _, tx, n: tx.access.keep_datasets(range(1, n + 1), wait=True), frozenset({"pk_datasets"}), 1
    ),
    "AccessStore.keep_datasets free": Case(
        lambda _, tx, n: tx.access.keep_datasets(range(1, n + 1), wait=False), frozenset({"pk_datasets"}), 1
    ),
    "AccessStore.user_exists": Case(lambda _, tx, n: tx.access.user_exists(n), frozenset({"pk_users"}), 1),
    "AccessStore.user_ids": Case(
        # Of a hundred, it rightly reads the 2,500 users that there are.
        lambda _, tx, n: tx.access.user_ids([f"mi{one:05}" for one in range(1, min(n, 8) + 1)]),
        frozenset({"uq_users_soeid"}),
        1,
    ),
}
LISTED = {"JobList.newest", "JobList.total"}
