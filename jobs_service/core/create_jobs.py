"""Creating jobs: who may, which of them exist already, and the rest inserted with their history."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from jobs_service.core import dependencies, permissions, run_parameters
from jobs_service.core.dependencies import Waiting
from jobs_service.core.permissions import CREATING, Action
from jobs_service.core.validation import refuse_any
from jobs_service.model.caller import Standing
from jobs_service.model.errors import (
    InvalidRequest,
    JobsError,
    RequestIdConflict,
    TransactionRolledBack,
    Violation,
)
from jobs_service.model.job import Job, JobStatus, NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult
from jobs_service.model.states import EventType
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Transaction
from jobs_service.storage.event_store import Event
from jobs_service.storage.job_insert import InsertedJob, JobInsert
from jobs_service.storage.job_store import EarlierJob, RequestKey

_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Item:
    """One request on its way through the batch."""

    request: CreateRequest
    standing: Standing
    refused: JobsError | None = None
    """Why the request is refused whatever its request_id has made: who calls, for whom, with what."""
    denied: JobsError | None = None
    """Which permission is missing, or what it can't wait for."""
    job_id: UUID = field(default_factory=uuid7)
    waiting: Waiting | None = None
    insert: JobInsert | None = None
    inserted: InsertedJob | None = None
    earlier: EarlierJob | None = None

    @property
    def decided(self) -> bool:
        """Whether nothing will be inserted for it, whatever others do."""
        return bool(self.refused or self.denied or self.earlier)

    @property
    def key(self) -> RequestKey | None:
        """What makes the request_id unique; None: it has none."""
        caller, request_id = self.request.caller, self.request.job.request_id
        if request_id is None or caller.subject_id is None:
            return None
        return RequestKey(caller.subject_id, caller.user_id, request_id)


class RefusedTogether(Exception):
    """One of a batch that stands or falls together is refused: which (the first), and why."""

    def __init__(self, index: int, refusal: JobsError) -> None:
        super().__init__(f"entry {index}: {refusal}")
        self.index = index
        self.refusal = refusal


def create_jobs(
    tx: Transaction, requests: Sequence[CreateRequest], *, wait: bool = True, together: bool = False
) -> list[CreateResult | JobsError]:
    """Create the jobs asked for; see JobService.create_jobs.

    wait: for who holds a job that one of them depends on, else that one is refused with RowLocked, and for
    who fills the same places.
    together: all or none; raises RefusedTogether, which the transaction must not survive. Only then may
    a request depend on others of the batch.
    """
    items = _judged(tx, requests)
    if together:
        # One that others wait for may have been created by an earlier call.
        _find_earlier(tx, items)
    _judge_dependencies(tx, items, wait=wait)
    if together:
        _require_all([_result(item) if item.decided else None for item in items])
    _insert(tx, items)
    _find_earlier(tx, items)
    results = [_result(item) for item in items]
    if together:
        _require_all(results)
    tx.events.append([_created_event(item) for item in items if item.inserted is not None])
    _follow_up(tx, items, wait=wait)
    return results


def _follow_up(tx: Transaction, items: Sequence[_Item], *, wait: bool) -> None:
    """Give places to jobs of limited data sets, and note what can be claimed now."""
    held = {item.request.job.dataset_id for item in items if item.inserted and item.inserted.held}
    tx.news.ready |= tx.places.fill(held, wait=wait)
    tx.news.ready |= {
        item.request.job.run_type for item in items if item.inserted and item.inserted.claimable
    }


def _require_all(results: Sequence[CreateResult | JobsError | None]) -> None:
    for index, result in enumerate(results):
        if isinstance(result, JobsError):
            raise RefusedTogether(index, result)


def _judged(tx: Transaction, requests: Sequence[CreateRequest]) -> list[_Item]:
    """Look up every caller and data set in one go, and decide for each request."""
    questions = [
        StandingQuestion(request.caller, dataset_id)
        for request in requests
        for dataset_id in _datasets_of(request.job)
    ]
    answers = iter(tx.access.standings(questions))
    return [_judge(request, [next(answers) for _ in _datasets_of(request.job)]) for request in requests]


def _datasets_of(job: NewJob) -> list[int]:
    """The data set that the job belongs to first, then those that its SQL reads."""
    is_sql = job.run_type is RunType.SQL_TRANSFORM
    return [job.dataset_id, *(run_parameters.sql_sources(job.run_parameters) if is_sql else [])]


def _judge(request: CreateRequest, standings: Sequence[Standing]) -> _Item:
    item = _Item(request, standings[0])
    try:
        permissions.require_known(request.caller, item.standing)
        refuse_any(run_parameters.check_owner(request.job.run_parameters, request.caller.subject_id))
    except JobsError as refusal:
        item.refused = refusal
        return item
    own, *sources = _datasets_of(request.job)
    try:
        permissions.require_dataset(CREATING[request.job.run_type], item.standing, own)
        for dataset_id, standing in zip(sources, standings[1:], strict=True):
            permissions.require_dataset(Action.READ_SOURCE, standing, dataset_id)
    except JobsError as refusal:
        item.denied = refusal
    return item


def _judge_dependencies(tx: Transaction, items: Sequence[_Item], *, wait: bool) -> None:
    first: dict[RequestKey, _Item] = {}
    for item in items:
        if item.key:
            first.setdefault(item.key, item)
        request = item.request
        depends = request.job.depends_on or request.depends_on_indexes
        if depends and not item.decided:
            others = [items[index] for index in request.depends_on_indexes]
            _wait(item, [first.get(other.key, other) if other.key else other for other in others])
    waiting = [item.waiting for item in items if item.waiting]
    if waiting:
        dependencies.judge(tx, waiting, wait=wait)
    for item in items:
        if item.waiting:
            item.denied = item.denied or item.waiting.refused


def _wait(item: _Item, others: Sequence[_Item]) -> None:
    """Let a job wait for what it depends on, these others of the same batch too."""
    job = item.request.job
    item.waiting = Waiting(
        subject_id=item.request.caller.subject_id or 0,
        depends_on=[*job.depends_on, *(other.earlier.job.job_id for other in others if other.earlier)],
        siblings=[other.job_id for other in others if not other.earlier],
        keep_waiting=job.keep_waiting,
        only_planned=job.validate_only,
    )
    for other in others:
        item.denied = item.denied or other.refused or other.denied
        if other.request.job.validate_only and not job.validate_only:
            violation = Violation("depends_on_indexes", "names an entry that is only validated")
            item.denied = item.denied or InvalidRequest([violation])


def _insert(tx: Transaction, items: Sequence[_Item]) -> None:
    """Insert what is allowed and not taken by its request id, with what it depends on."""
    for item in items:
        caller, job = item.request.caller, item.request.job
        if not (item.decided or job.validate_only) and caller.subject_id is not None:
            if item.waiting:
                job = replace(job, depends_on=item.waiting.all)
            item.insert = JobInsert(
                item.job_id,
                caller.subject_id,
                caller.user_id,
                job,
                item.request.traceparent,
                waits=bool(item.waiting and item.waiting.waiting_on),
            )
    inserts = [item.insert for item in items if item.insert is not None]
    created = tx.jobs.insert(inserts) if inserts else {}
    for item in items:
        if item.insert is not None:
            item.inserted = created.get(item.insert.job_id)
    _insert_dependencies(tx, items)


def _insert_dependencies(tx: Transaction, items: Sequence[_Item]) -> None:
    waiting = [(item, item.waiting) for item in items if item.waiting and item.inserted]
    inserted = {item.job_id for item in items if item.inserted}
    if any(set(each.siblings) - inserted for _, each in waiting):
        # Another call has created one of them at this moment. A rerun finds it.
        raise TransactionRolledBack
    if waiting:
        tx.dependencies.insert({item.job_id: each.all for item, each in waiting})


def _find_earlier(tx: Transaction, items: Sequence[_Item]) -> None:
    """Find the jobs that the request ids of what was not created have made before."""
    waiting = [
        item
        for item in items
        if item.key and item.inserted is None and item.earlier is None and not item.refused
    ]
    keys = {item.key for item in waiting if item.key}
    found = tx.jobs.by_request_ids(list(keys)) if keys else {}
    for item in waiting:
        if item.key:
            item.earlier = found.get(item.key)


def _result(item: _Item) -> CreateResult | JobsError:
    job, earlier = item.request.job, item.earlier
    same = earlier is not None and earlier.request_hash == job.request_hash
    if item.refused:
        return item.refused
    if item.inserted is not None:
        return CreateResult(_job_as_created(item))
    if earlier is not None and same:
        # Whoever repeats a request may see its job, whatever has become of the permission since.
        shown = _job_as_created(item) if job.validate_only else earlier.job
        return CreateResult(shown, replayed=True, planned=job.validate_only)
    if item.denied:
        return item.denied
    if earlier is not None:
        return RequestIdConflict(request_id=job.request_id, job_id=earlier.job.job_id)
    if not job.validate_only:
        # The row that stood in the way is gone again. Nothing is wrong: a rerun creates the job.
        raise TransactionRolledBack
    return CreateResult(_job_as_created(item), planned=True)


def _job_as_created(item: _Item) -> Job:
    """The job as its row is now; without id and times where it is only planned."""
    caller, job = item.request.caller, item.request.job
    moment = item.inserted.create_time if item.inserted else _NO_TIME
    return Job(
        job_id=item.insert.job_id if item.insert else UUID(int=0),
        run_type=job.run_type,
        status=JobStatus.PENDING,
        dataset_id=job.dataset_id,
        dataset_name=item.standing.dataset_name,
        owner_id=caller.subject_id or 0,
        owner_soeid=caller.subject_soeid,
        creator_id=caller.user_id,
        creator_soeid=caller.soeid if caller.user_id != caller.subject_id else None,
        description=job.description,
        external_id=job.external_id,
        priority=job.priority,
        attempt=0,
        max_attempts=job.max_attempts,
        create_time=moment,
        available_time=moment + job.start_delay,
        update_time=moment,
        version=1,
        payload_bytes=job.payload_bytes,
        source_commit_id=job.source_commit_id,
        run_parameters=job.run_parameters,
        waiting_on=item.waiting.waiting_on if item.waiting else (),
    )


def _created_event(item: _Item) -> Event:
    job = _job_as_created(item)
    return Event(
        type=EventType.CREATED,
        job_id=job.job_id,
        run_type=job.run_type,
        actor=item.request.caller,
        status_before=None,
        status_after=job.status,
        time=job.create_time,
    )
