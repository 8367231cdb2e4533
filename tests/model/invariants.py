"""What must hold of the database at every moment, whatever was done: read by plain SQL."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from jobs_service.model.job import JobStatus
from jobs_service.model.states import TERMINAL, TRANSITIONS

Row = dict[str, Any]
# What readers of the API don't see.
_INTERNAL = {"turn", "claims", "lease_token", "releases", "attempt_budget", "version", "update_time"}
_ENDED = {status.value for status in TERMINAL}
_ALLOWED: dict[str, set[tuple[str | None, str]]] = {
    "CREATED": {(None, "PENDING")},
    "CLAIMED": {("PENDING", "RUNNING")},
    "COMPLETED": {("RUNNING", "COMPLETED")},
    "ATTEMPT_FAILED": {("RUNNING", "PENDING")},
    "FAILED": {("RUNNING", "FAILED")},
    "RELEASED": {("RUNNING", "PENDING")},
    "LEASE_EXPIRED": {("RUNNING", "PENDING"), ("RUNNING", "FAILED")},
    "RUN_TIMED_OUT": {("RUNNING", "PENDING"), ("RUNNING", "FAILED")},
    "CANCELLED": {("PENDING", "CANCELLED"), ("RUNNING", "CANCELLED")},
    "RETRIED": {("FAILED", "PENDING"), ("CANCELLED", "PENDING")},
}
_COPIED = ("run_type", "dataset_id", "payload_bytes", "available_time")
# The event that goes with each outcome of a claim.
_EVENTS_OF = {
    "COMPLETED": {"COMPLETED"},
    "FAILED": {"ATTEMPT_FAILED", "FAILED"},
    "RELEASED": {"RELEASED"},
    "LEASE_EXPIRED": {"LEASE_EXPIRED"},
    "RUN_TIMED_OUT": {"RUN_TIMED_OUT"},
    "CANCELLED": {"CANCELLED"},
}

_QUERIES = {
    "jobs": "SELECT job_id::text AS job_id, to_jsonb(t) AS row,"
    " available_time <= clock_timestamp() AS due FROM jobs t",
    "leases": "SELECT job_id::text AS job_id, to_jsonb(t) AS row,"
    " lease_expire_time <= run_deadline AS bounded FROM job_leases t",
    "queue": "SELECT job_id::text AS job_id, to_jsonb(t) AS row, available_time <= clock_timestamp() AS due"
    " FROM job_queue t",
    "attempts": "SELECT job_id::text AS job_id, to_jsonb(t) AS row FROM job_attempts t ORDER BY claim",
    "events": "SELECT job_id::text AS job_id, to_jsonb(t) AS row FROM job_events t ORDER BY event_id",
    "dependencies": "SELECT job_id::text AS job_id, depends_on_job_id::text AS other FROM job_dependencies",
    "untold": "SELECT job_id::text AS job_id FROM ended_dependencies",
    "limits": "SELECT dataset_id, max_running FROM dataset_limits",
}


@dataclass
class Snapshot:
    """All of it at one moment. jobs, leases, queue by job id; attempts and events oldest first."""

    jobs: dict[str, Row] = field(default_factory=dict)
    leases: dict[str, Row] = field(default_factory=dict)
    queue: dict[str, Row] = field(default_factory=dict)
    attempts: dict[str, list[Row]] = field(default_factory=dict)
    events: dict[str, list[Row]] = field(default_factory=dict)
    waits_for: dict[str, set[str]] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)
    limits: dict[int, int] = field(default_factory=dict)


def snapshot(sql: psycopg.Connection) -> Snapshot:
    """Read everything, in one transaction."""
    with sql.transaction():
        sql.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = {name: _rows(sql, query) for name, query in _QUERIES.items()}
    return Snapshot(
        jobs={one["job_id"]: one["row"] | {"due": one["due"]} for one in found["jobs"]},
        leases={one["job_id"]: one["row"] | {"bounded": one["bounded"]} for one in found["leases"]},
        queue={one["job_id"]: one["row"] | {"due": one["due"]} for one in found["queue"]},
        attempts=_grouped(found["attempts"], "row"),
        events=_grouped(found["events"], "row"),
        waits_for={
            job_id: set(others) for job_id, others in _grouped(found["dependencies"], "other").items()
        },
        untold={one["job_id"] for one in found["untold"]},
        limits={one["dataset_id"]: one["max_running"] for one in found["limits"]},
    )


def _rows(sql: psycopg.Connection, query: str) -> list[Row]:
    cursor = sql.execute(query.encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _grouped(rows: Iterable[Row], value: str) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row["job_id"]].append(row[value])
    return dict(grouped)


def violations(now: Snapshot) -> list[str]:
    """What is wrong at this moment, in words; empty unless something is."""
    wrong = [
        text for check in _OF_A_JOB for job_id, job in now.jobs.items() for text in check(now, job_id, job)
    ]
    for name, rows in (("lease", now.leases), ("queue row", now.queue), ("claim", now.attempts)):
        wrong += [f"{job_id}: a {name} without a job" for job_id in rows.keys() - now.jobs.keys()]
    tokens = Counter(one["lease_token"] for each in now.attempts.values() for one in each)
    tokens.update(one["lease_token"] for one in now.leases.values())
    wrong += [f"token {token} was given {count} times" for token, count in tokens.items() if count > 1]
    return wrong


def _of_a_claim(now: Snapshot, job_id: str, job: Row) -> Iterable[str]:
    """A lease exactly while the job runs, and the same token in both."""
    lease = now.leases.get(job_id)
    if (job["status"] == "RUNNING") != (lease is not None):
        yield f"{job_id} is {job['status']}, its lease: {lease}"
    if (job["status"] == "RUNNING") != (job["lease_token"] is not None):
        yield f"{job_id} is {job['status']}, its token: {job['lease_token']}"
    if lease is not None and lease["lease_token"] != job["lease_token"]:
        yield f"{job_id}: its lease has another token"
    if lease is not None and (lease["claim"], lease["attempt"]) != (job["claims"], job["attempt"]):
        yield f"{job_id}: its lease is of claim {lease['claim']}, attempt {lease['attempt']}; the job: {job}"
    if lease is not None and not lease["bounded"]:
        yield f"{job_id}: its lease goes beyond its time to run"


def _of_the_queue(now: Snapshot, job_id: str, job: Row) -> Iterable[str]:
    """In the queue exactly while it waits for no other job; ready no earlier than it may be."""
    unfinished = unfinished_dependencies(now, job_id)
    queued = now.queue.get(job_id)
    # One that was told nothing yet may be late, but never early.
    told = not (now.waits_for.get(job_id, set()) & now.untold)
    if queued is None and job["status"] == "PENDING" and not unfinished and told:
        yield f"{job_id} is ready and not in the queue"
    if queued and (job["status"] != "PENDING" or unfinished):
        yield f"{job_id} is {job['status']}, waits for {unfinished}, and is in the queue"
    if queued and queued["ready"] and not queued["due"]:
        yield f"{job_id} is ready before its time"
    if queued and queued["held"] and not queued["limited"]:
        yield f"{job_id} is held without a limit"
    copied = {name: queued[name] for name in _COPIED} if queued else {}
    for name, value in copied.items():
        if value != job[name]:
            yield f"{job_id}: its {name} is {job[name]}, {value} in the queue"
    # One that comes late begins where the others are by then.
    if queued and queued["turn"] < job["turn"]:
        yield f"{job_id}: its turn is {job['turn']}, {queued['turn']} in the queue"
    if job["status"] in {"RUNNING", "COMPLETED"} and unfinished:
        yield f"{job_id} is {job['status']} before {unfinished}"


def _of_attempts(now: Snapshot, job_id: str, job: Row) -> Iterable[str]:
    """Counted right, none too many, one row for each claim that ended."""
    attempts, running = now.attempts.get(job_id, []), job["status"] == "RUNNING"
    if job["attempt"] > job["max_attempts"]:
        yield f"{job_id}: attempt {job['attempt']} of {job['max_attempts']}"
    spent = sum(one["outcome"] != "RELEASED" for one in attempts) + running
    if job["attempt"] != spent:
        yield f"{job_id}: attempt {job['attempt']}, spent: {spent}"
    if [one["claim"] for one in attempts] != list(range(1, job["claims"] + (not running))):
        yield f"{job_id}: {job['claims']} claims, ended: {[one['claim'] for one in attempts]}"
    ends = [one["type"] for one in now.events[job_id] if one["status_before"] == "RUNNING"]
    if len(ends) != len(attempts) or any(
        end not in _EVENTS_OF[one["outcome"]] for end, one in zip(ends, attempts, strict=False)
    ):
        yield f"{job_id}: claims ended {[one['outcome'] for one in attempts]}, its history has {ends}"


def _of_the_history(now: Snapshot, job_id: str, job: Row) -> Iterable[str]:
    """One row for each change of status, each beginning where the one before has ended."""
    before: str | None = None
    events = now.events.get(job_id, [])
    for event in events:
        step = (event["status_before"], event["status_after"])
        if step[0] != before or step not in _ALLOWED[event["type"]]:
            yield f"{job_id}: {event['type']} from {step[0]} to {step[1]} after {before}"
        if step[0] is not None and JobStatus(step[1]) not in TRANSITIONS[JobStatus(step[0])]:
            yield f"{job_id}: from {step[0]} to {step[1]}"
        before = step[1]
    if before != job["status"]:
        yield f"{job_id} is {job['status']}, its history ends with {before}"
    times = [event["time"] for event in events]
    if times != sorted(times):
        yield f"{job_id}: its history goes back in time: {times}"
    claims = sum(event["type"] == "CLAIMED" for event in events)
    if claims != job["claims"]:
        yield f"{job_id}: {job['claims']} claims, {claims} in its history"
    if job["version"] < len(events):
        yield f"{job_id}: version {job['version']} after {len(events)} changes"


_OF_A_JOB: list[Callable[[Snapshot, str, Row], Iterable[str]]] = [
    _of_a_claim,
    _of_the_queue,
    _of_attempts,
    _of_the_history,
]


def unfinished_dependencies(now: Snapshot, job_id: str) -> set[str]:
    """What the job waits for. A dependency that was deleted had been COMPLETED."""
    return {
        other
        for other in now.waits_for.get(job_id, set())
        if other in now.jobs and now.jobs[other]["status"] != "COMPLETED"
    }


def changes(before: Snapshot, now: Snapshot, *, may_go: bool = False) -> list[str]:
    """What may not have changed between two moments, in words. may_go: ended jobs may have been deleted."""
    wrong: list[str] = []
    for job_id, old in before.jobs.items():
        new = now.jobs.get(job_id)
        if new is not None:
            since = now.events[job_id][len(before.events[job_id]) :]
            if all(event["type"] != "RETRIED" for event in since):
                wrong += _as_ended(job_id, old, new)
            wrong += _between(job_id, old, new)
            wrong += _grown(job_id, "events", before.events[job_id], now.events[job_id])
            wrong += _grown(job_id, "attempts", before.attempts.get(job_id, []), now.attempts.get(job_id, []))
        elif not may_go or old["status"] not in _ENDED:
            wrong.append(f"{job_id} was {old['status']}, and is not there")
    return wrong


def _between(job_id: str, old: Row, new: Row) -> Iterable[str]:
    changed = {name for name in old.keys() - _INTERNAL - {"due"} if old[name] != new[name]}
    if old["status"] == "COMPLETED" and any(old[name] != new[name] for name in old.keys() - {"due"}):
        yield f"{job_id} was COMPLETED, and changed"
    if changed and new["version"] <= old["version"]:
        yield f"{job_id} changed in {changed}, its version from {old['version']} to {new['version']}"
    if new["version"] < old["version"] or new["update_time"] < old["update_time"]:
        yield f"{job_id} went back"
    if new["max_attempts"] < old["max_attempts"] or new["claims"] < old["claims"]:
        yield f"{job_id}: its attempts went back"


def _as_ended(job_id: str, old: Row, new: Row) -> list[str]:
    """Nobody has tried it again."""
    changed = {name for name in old.keys() - {"due"} if old[name] != new[name]}
    return [f"{job_id} had ended, and changed: {changed}"] if old["status"] in _ENDED and changed else []


def _grown(job_id: str, name: str, old: list[Row], new: list[Row]) -> list[str]:
    """Written once, for ever."""
    return [] if new[: len(old)] == old else [f"{job_id}: its {name} were written again"]


def places(now: Snapshot) -> dict[int, tuple[int, int, int]]:
    """Of each data set with a limit: how many run, how many are let through, how many are held."""
    found = {}
    for dataset_id in now.limits:
        queued = [one for one in now.queue.values() if one["dataset_id"] == dataset_id and one["ready"]]
        running = sum(one["dataset_id"] == dataset_id for one in now.leases.values())
        held = sum(one["held"] for one in queued)
        found[dataset_id] = (running, len(queued) - held, held)
    return found
