"""The statement that claims: picks from the queue in order, waits for nobody, and writes all of a claim.

A job is picked where both its row of the queue and its own are free. The queue says who may be claimed, the
job's own row whether that is still so: rows that others leave behind are passed over, see tidy in job_queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Interval,
    Row,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.selectable import LateralFromClause

from jobs_service.model.job import (
    MAX_SHOWN_ATTEMPTS,
    Attempt,
    AttemptOutcome,
    JobError,
    JobStatus,
    JobView,
    RunType,
)
from jobs_service.model.retry import DEFAULT_RUN_TIMEOUT
from jobs_service.model.states import EventType
from jobs_service.model.work import Claim, ClaimRequest
from jobs_service.storage.job_rows import COLUMNS, job_of
from jobs_service.storage.queue_tables import is_limited, job_attempts, job_leases, job_queue
from jobs_service.storage.recordset import interval, recordset, rows
from jobs_service.storage.tables import job_events, jobs
from jobs_service.storage.turns import clock_named, clock_of

_asked = recordset(
    "asked",
    {
        "n": Integer(),
        "actor_id": BigInteger(),
        "actor_soeid": Text(),
        "worker_id": Text(),
        # Of all that are claimed by the batch, those from first to last.
        "first": Integer(),
        "last": Integer(),
        "lease_duration": Interval(),
    },
)
_types = (
    func.unnest(
        bindparam("run_types", type_=ARRAY(Text)),
        bindparam("from_neg_priorities", type_=ARRAY(Integer)),
        bindparam("from_turns", type_=ARRAY(BigInteger)),
        bindparam("from_job_ids", type_=ARRAY(Uuid)),
    )
    .table_valued("run_type", "from_neg_priority", "from_turn", "from_job_id", name="types")
    .render_derived()
)
_wanted = bindparam("wanted", type_=Integer)
_bytes = bindparam("answer_bytes", type_=BigInteger)
_key = (job_queue.c.neg_priority, job_queue.c.turn, job_queue.c.job_id)
# What was put into the queue while its data set got a limit does not say so yet.
_rightly_labelled = job_queue.c.limited | ~is_limited(job_queue.c.dataset_id)
_claimable = and_(
    job_queue.c.run_type == _types.c.run_type,
    job_queue.c.ready,
    ~job_queue.c.held,
    tuple_(*_key) >= tuple_(_types.c.from_neg_priority, _types.c.from_turn, _types.c.from_job_id),
    _rightly_labelled,
)
# A subquery of its own with a lock is always looked up job by job, whatever the planner thinks of it.
_free_job = (
    select(jobs.c.job_id)
    .where(
        jobs.c.job_id == job_queue.c.job_id,
        jobs.c.status == literal(JobStatus.PENDING.value, literal_execute=True),
    )
    .with_for_update(skip_locked=True)
    .lateral("free_job")
)


def _last_key() -> CTE:
    """The key that the last of as many as are wanted has, over all run types; no row: there are fewer."""
    candidates = select(*_key).where(_claimable).order_by(*_key).limit(_wanted).lateral("candidates")
    found = select(candidates).select_from(_types.join(candidates, true()))
    keys = [candidates.c[column.name] for column in _key]
    last = found.order_by(*keys).offset(_wanted - 1).limit(1)
    return last.cte("last_key").prefix_with("MATERIALIZED")


def _up_to(last: CTE) -> ColumnElement[bool]:
    beyond_all: tuple[object, ...] = (1, 0, UUID(int=0))
    bounds = [
        func.coalesce(select(last.c[column.name]).scalar_subquery(), literal(beyond, column.type))
        for column, beyond in zip(_key, beyond_all, strict=True)
    ]
    return tuple_(*_key) <= tuple_(*bounds)


def _picked_of_one(condition: ColumnElement[bool]) -> LateralFromClause:
    columns = ("job_id", "run_type", "neg_priority", "turn", "payload_bytes", "limited")
    return (
        select(*(job_queue.c[name] for name in columns))
        .select_from(job_queue.join(_free_job, true()))
        .where(condition)
        .order_by(*_key)
        .limit(_wanted)
        .with_for_update(of=job_queue, skip_locked=True)
        .lateral("picked_of_one")
    )


def _picked(condition: ColumnElement[bool]) -> CTE:
    of_one = _picked_of_one(condition)
    place = func.row_number().over(order_by=(of_one.c.neg_priority, of_one.c.turn, of_one.c.job_id))
    return (
        select(of_one, place.label("place"))
        .select_from(_types.join(of_one, true()))
        .order_by(place)
        .limit(_wanted)
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )


def _chosen(picked: CTE) -> CTE:
    """Those that fit, each with the request that gets it."""
    size = func.sum(picked.c.payload_bytes).over(partition_by=_asked.c.n, order_by=picked.c.place)
    given = (
        select(
            picked.c.job_id,
            picked.c.turn,
            picked.c.limited,
            picked.c.place,
            *(_asked.c[name] for name in ("n", "actor_id", "actor_soeid", "worker_id", "lease_duration")),
            or_(size <= _bytes, picked.c.place == _asked.c.first).label("fits"),
        )
        .select_from(picked.join(_asked, picked.c.place.between(_asked.c.first, _asked.c.last)))
        .subquery("given")
    )
    return select(given).where(given.c.fits).cte("chosen").prefix_with("MATERIALIZED")


def _claimed(chosen: CTE) -> CTE:
    moment = func.greatest(func.statement_timestamp(), jobs.c.update_time)
    ids = func.array(select(chosen.c.job_id).scalar_subquery(), type_=ARRAY(Uuid))
    mine = ("turn", "limited", "place", "n", "actor_id", "actor_soeid", "worker_id", "lease_duration")
    return (
        update(jobs)
        # The ids twice: a join alone might read all jobs.
        .where(jobs.c.job_id == func.any(ids), jobs.c.job_id == chosen.c.job_id)
        .values(
            status=JobStatus.RUNNING.value,
            attempt=jobs.c.attempt + 1,
            claims=jobs.c.claims + 1,
            lease_token=func.gen_random_uuid(),
            # Nearly always what it was: no index is touched then.
            turn=chosen.c.turn,
            progress=None,
            start_time=func.coalesce(jobs.c.start_time, moment),
            update_time=moment,
            version=jobs.c.version + 1,
        )
        .returning(
            *COLUMNS[JobView.FULL],
            jobs.c.traceparent,
            *(chosen.c[name] for name in mine if name != "turn"),
            (moment + func.coalesce(jobs.c.run_timeout, literal(DEFAULT_RUN_TIMEOUT))).label("run_deadline"),
        )
        .cte("claimed")
    )


def _lease_expire_time(claimed: CTE) -> ColumnElement[Any]:
    return func.least(claimed.c.update_time + claimed.c.lease_duration, claimed.c.run_deadline)


def _leased(claimed: CTE) -> CTE:
    names = ("job_id", "attempt", "lease_token", "worker_id", "dataset_id", "limited", "lease_duration")
    values = {
        **{name: claimed.c[name] for name in names},
        "claim": claimed.c.claims,
        "start_time": claimed.c.update_time,
        "lease_expire_time": _lease_expire_time(claimed),
        "run_deadline": claimed.c.run_deadline,
    }
    return insert(job_leases).from_select(list(values), select(*values.values())).cte("leased")


def _noted(claimed: CTE) -> CTE:
    values: dict[str, ColumnElement[Any]] = {
        "type": literal(EventType.CLAIMED.value),
        **{name: claimed.c[name] for name in ("job_id", "run_type", "actor_id", "actor_soeid")},
        "reason": claimed.c.worker_id,
        "status_before": literal(JobStatus.PENDING.value),
        "status_after": literal(JobStatus.RUNNING.value),
        "time": claimed.c.update_time,
    }
    return insert(job_events).from_select(list(values), select(*values.values())).cte("noted")


def _set_clocks(claimed: CTE) -> CTE:
    """The clocks go on to the highest turn claimed: never back, where a retry comes with an old turn."""
    highest = (
        select(claimed.c.run_type, func.max(claimed.c.turn).label("turn"))
        .group_by(claimed.c.run_type)
        .subquery("highest")
    )
    value = func.setval(clock_named(highest.c.run_type), highest.c.turn)
    ahead = highest.c.turn > clock_of(highest.c.run_type)
    return select(value.label("value")).where(ahead).cte("clocks").prefix_with("MATERIALIZED")


def _statement(condition: ColumnElement[bool]) -> Select[Any]:
    picked = _picked(condition)
    chosen = _chosen(picked)
    claimed = _claimed(chosen)
    taken = delete(job_queue).where(
        job_queue.c.job_id
        == func.any(func.array(select(chosen.c.job_id).scalar_subquery(), type_=ARRAY(Uuid)))
    )
    said = select(
        select(func.count()).select_from(picked).scalar_subquery().label("picked"),
        # Named, or the clocks would not be set.
        select(func.count()).select_from(_set_clocks(claimed)).scalar_subquery().label("clocks"),
    ).subquery("said")
    return (
        select(said, claimed, _lease_expire_time(claimed).label("lease_expire_time"))
        .select_from(said.outerjoin(claimed, true()))
        .order_by(claimed.c.place)
        .add_cte(taken.cte("taken"), _leased(claimed), _noted(claimed))
    )


CLAIM = _statement(_claimable)
"""With the parameters of claim_parameters: a row for each job claimed, or one without a job."""
CLAIM_UP_TO_LAST = _statement(_claimable & _up_to(_last_key()))
"""The same for several run types, which locks nothing that it will not claim. What is locked by others
counts as found: it may then claim less than there is."""


_claimed_again = (
    func.unnest(bindparam("job_ids", type_=ARRAY(Uuid)))
    .table_valued("job_id", name="claimed_again")
    .render_derived()
)
_newest = (
    select(job_attempts)
    .where(job_attempts.c.job_id == _claimed_again.c.job_id)
    .order_by(job_attempts.c.claim.desc())
    .limit(MAX_SHOWN_ATTEMPTS - 1)
    .lateral("newest")
)
ATTEMPTS = select(_newest).select_from(_claimed_again.join(_newest, true())).order_by(_newest.c.claim)
"""The claims of these jobs that have ended, the newest of each, oldest first."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the order of claims."""

    neg_priority: int
    turn: int
    job_id: UUID


FIRST = Place(-1_000, 0, UUID(int=0))
"""Before everything."""


def claim_parameters(
    run_types: Mapping[RunType, Place], requests: Sequence[ClaimRequest], answer_bytes: int
) -> dict[str, Any]:
    """Return the parameters of CLAIM: requests that ask for these run types, each from its place on."""
    first, records = 1, []
    for n, request in enumerate(requests):
        records.append(
            {
                "n": n,
                "actor_id": request.caller.user_id,
                "actor_soeid": request.caller.soeid,
                "worker_id": request.worker_id,
                "first": first,
                "last": first + request.max_jobs - 1,
                "lease_duration": interval(request.lease_duration),
            }
        )
        first += request.max_jobs
    return {
        **rows(records),
        "run_types": list(run_types),
        "from_neg_priorities": [place.neg_priority for place in run_types.values()],
        "from_turns": [place.turn for place in run_types.values()],
        "from_job_ids": [place.job_id for place in run_types.values()],
        "wanted": first - 1,
        "answer_bytes": answer_bytes,
    }


def claim_of(row: Row[Any], earlier: Sequence[Attempt]) -> Claim:
    """Return the claim of a row of CLAIM; earlier: the job's attempts before this one."""
    running = Attempt(number=row.attempt, worker_id=row.worker_id, start_time=row.update_time)
    job = replace(
        job_of(row),
        worker_id=row.worker_id,
        lease_expire_time=row.lease_expire_time,
        attempts=(*earlier, running),
    )
    return Claim(
        job=job,
        lease_token=row.lease_token,
        lease_expire_time=row.lease_expire_time,
        attempt=row.attempt,
        traceparent=row.traceparent,
    )


def attempt_of(row: Row[Any]) -> Attempt:
    """Return the attempt of a row of ATTEMPTS."""
    failed = row.error_type is not None or row.error_message is not None
    error = JobError(
        type=row.error_type or "", message=row.error_message or "", retryable=bool(row.error_retryable)
    )
    return Attempt(
        number=row.number,
        worker_id=row.worker_id,
        start_time=row.start_time,
        end_time=row.end_time,
        outcome=AttemptOutcome(row.outcome),
        error=error if failed else None,
    )
