"""Where the database and the reference differ, in words."""

from collections.abc import Collection
from uuid import UUID

from tests.model.invariants import Snapshot, places
from tests.model.reference import Known


def differences(known: Known, now: Snapshot) -> list[str]:
    """In what a job is not as it ought to be. Its version is taken over."""
    job_id = str(known.job_id)
    row = now.jobs[job_id]
    lowest = known.version - known.slack + (known.slack > 0)
    if not lowest <= row["version"] <= known.version:
        return [f"{job_id}: version {row['version']}, expected {lowest}..{known.version}"]
    known.version, known.slack = row["version"], 0
    token = UUID(row["lease_token"]) if row["lease_token"] else None
    has = {
        "status": row["status"],
        "attempt": row["attempt"],
        "max_attempts": row["max_attempts"],
        "claims": row["claims"],
        "releases": row["releases"],
        "token": token,
        "events": [(one["type"], one["status_before"], one["status_after"]) for one in now.events[job_id]],
        "outcomes": [
            (one["number"], one["outcome"], one["will_retry"]) for one in now.attempts.get(job_id, [])
        ],
    }
    return [
        f"{job_id}: {name} is {value}, expected {getattr(known, name)}"
        for name, value in has.items()
        if value != getattr(known, name)
    ]


def idle_places(earlier: Snapshot, now: Snapshot) -> list[str]:
    """Limits hold, and nobody is held while there is a place."""
    wrong, before = [], places(earlier)
    for dataset_id, (running, let_through, held) in places(now).items():
        most, taken = now.limits[dataset_id], running + let_through
        had = sum(before.get(dataset_id, (running, let_through, 0))[:2])
        if taken > max(most, had):
            wrong.append(f"data set {dataset_id}: {taken} places taken of {most}")
        if held and taken < most:
            wrong.append(f"data set {dataset_id}: {held} are held, {taken} of {most} places taken")
    return wrong


def untold(before: Snapshot, now: Snapshot, told: Collection[str]) -> list[str]:
    """Whoever waits for jobs was told that there are some that could not be claimed before."""
    could = {job_id for job_id, row in before.queue.items() if row["ready"] and not row["held"]}
    can = {job_id for job_id, row in now.queue.items() if row["ready"] and not row["held"]}
    types = {now.queue[job_id]["run_type"] for job_id in can - could}
    return [f"nobody was told of jobs of type {run_type}" for run_type in types - set(told)]
