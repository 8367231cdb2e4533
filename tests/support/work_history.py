"""What workers, creators and cancellers were told under faults, held against what is there in the end."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.model.invariants import Snapshot, snapshot, unfinished_dependencies, violations
from tests.support.postgres import connect

Line = dict[str, Any]
_OUTCOME_OF = {"complete": "COMPLETED", "fail": "FAILED", "release": "RELEASED"}
_ENDS = {"COMPLETED", "FAILED", "CANCELLED"}


@dataclass
class Told:
    """What creators and the canceller were told. created: job ids with their plans; cancelled: who won."""

    created: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    # Refused, because the job had this status.
    too_late: dict[str, str] = field(default_factory=dict)
    # A cancel was sent at some time; without an answer it may have been done.
    asked: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Findings:
    """How it ended. wrong: every contradiction, in words."""

    statuses: Counter[str]
    lost: int
    completed_twice: int
    completed_after_cancel: int
    acknowledged: Counter[str]
    refused: int
    attempts: Counter[str]
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"{sum(self.statuses.values())} jobs: {dict(self.statuses)}; {self.lost} lost,"
            f" {self.completed_twice} completed twice, {self.completed_after_cancel} completed after cancel;"
            f" workers were acknowledged {dict(self.acknowledged)}, refused {self.refused} late calls;"
            f" claims ended {dict(self.attempts)}"
        )


def lines_of(folder: Path) -> list[Line]:
    """What the workers wrote, oldest first; the last line of one that was killed may be cut."""
    lines: list[Line] = []
    for path in sorted(folder.glob("*.log")):
        lines += [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
    for line in lines:
        if "lease_token" in line:
            # As the database writes it.
            line["lease_token"] = str(UUID(line["lease_token"]))
    return sorted(lines, key=lambda line: float(line["time"]))


def findings(url: str, told: Told, lines: Sequence[Line]) -> Findings:
    """Compare."""
    with connect(url) as sql:
        now = snapshot(sql)
    tokens = {one["lease_token"]: one for attempts in now.attempts.values() for one in attempts}
    types = {job_id: [event["type"] for event in events] for job_id, events in now.events.items()}
    wrong = violations(now) + list(_of_creators(now, told)) + list(_of_dependencies(now))
    wrong += [text for line in lines for text in _of_line(line, now, tokens)]
    wrong += list(_unsaid(now, lines))
    for job_id, attempts in now.attempts.items():
        wrong += _overlaps(job_id, attempts)
    acked: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line["what"] == "done" and line["kind"] == "complete":
            acked[line["job_id"]].add(line["lease_token"])
    twice = sum(kinds.count("COMPLETED") > 1 or len(acked[job_id]) > 1 for job_id, kinds in types.items())
    after = sum(
        "COMPLETED" in kinds[kinds.index("CANCELLED") :] for kinds in types.values() if "CANCELLED" in kinds
    )
    return Findings(
        statuses=Counter(job["status"] for job in now.jobs.values()),
        lost=len(told.created.keys() - now.jobs.keys()),
        completed_twice=twice,
        completed_after_cancel=after,
        acknowledged=Counter(line["kind"] for line in lines if line["what"] == "done"),
        refused=sum(line["what"] == "refused" for line in lines),
        attempts=Counter(one["outcome"] for one in tokens.values()),
        wrong=wrong,
    )


def _of_creators(now: Snapshot, told: Told) -> Iterable[str]:
    for job_id, plan in told.created.items():
        job = now.jobs.get(job_id)
        if job is None:
            yield f"{job_id} was acknowledged and is lost"
        elif job["status"] not in _ENDS:
            yield f"{job_id} never ended: it is {job['status']}"
        elif job["status"] != "CANCELLED" and job["status"] != (
            "FAILED" if plan == "doomed" else "COMPLETED"
        ):
            yield f"{job_id}, which is {plan}, is {job['status']}: {job['error_type']}"
        elif job["status"] == "CANCELLED" and job["cancelled_by_soeid"] and job_id not in told.asked:
            yield f"{job_id} was cancelled by nobody"
    yield from (f"{job_id} was never asked for" for job_id in now.jobs.keys() - told.created.keys())
    for job_id in told.cancelled:
        if now.jobs[job_id]["status"] != "CANCELLED":
            yield f"{job_id}: its cancel was acknowledged, it is {now.jobs[job_id]['status']}"
    for job_id, status in told.too_late.items():
        if now.jobs[job_id]["status"] != status:
            yield f"{job_id}: its cancel was told {status}, it is {now.jobs[job_id]['status']}"


def _of_dependencies(now: Snapshot) -> Iterable[str]:
    for job_id, others in now.waits_for.items():
        if now.jobs[job_id]["status"] == "COMPLETED" and unfinished_dependencies(now, job_id):
            yield f"{job_id} was completed before what it waits for"
        claims = [event["time"] for event in now.events[job_id] if event["type"] == "CLAIMED"]
        ends = [
            event["time"] for other in others for event in now.events[other] if event["type"] == "COMPLETED"
        ]
        if claims and (len(ends) < len(others) or min(claims) < max(ends)):
            yield f"{job_id} was claimed before all of {others} were completed"
        failed = any(now.jobs[other]["status"] in {"FAILED", "CANCELLED"} for other in others)
        if failed and now.jobs[job_id]["status"] != "CANCELLED":
            yield f"{job_id} is {now.jobs[job_id]['status']}, though one that it waited for failed"
    yield from (f"dependants of {job_id} were never told" for job_id in now.untold)


def _of_line(line: Line, now: Snapshot, tokens: dict[str, Line]) -> Iterable[str]:
    """What a worker was told of its claim must be how the claim ended."""
    if line["what"] not in {"done", "refused", "stopped"}:
        return
    ended = tokens.get(line["lease_token"])
    if ended is None or ended["job_id"] != line["job_id"]:
        yield f"{line} names a claim that never ended"
    elif line["what"] == "done":
        if ended["outcome"] != _OUTCOME_OF[line["kind"]] or ended["will_retry"] != line["will_retry"]:
            yield f"{line} was acknowledged, its claim ended {ended['outcome']}, {ended['will_retry']}"
    elif line["what"] == "refused" and ended["outcome"] == _OUTCOME_OF[line["kind"]]:
        yield f"{line} was refused, its claim ended {ended['outcome']}"
    elif line.get("state") == "cancel_requested" and now.jobs[line["job_id"]]["status"] != "CANCELLED":
        yield f"{line}: the job is {now.jobs[line['job_id']]['status']}"


def _unsaid(now: Snapshot, lines: Iterable[Line]) -> Iterable[str]:
    """Nothing ended in a way that its worker never sent."""
    sent = {(line["lease_token"], _OUTCOME_OF[line["kind"]]) for line in lines if line["what"] == "sent"}
    for attempts in now.attempts.values():
        for one in attempts:
            # A claim whose caller was gone is released by the service itself.
            if one["outcome"] in {"COMPLETED", "FAILED"} and (one["lease_token"], one["outcome"]) not in sent:
                yield f"{one} ended so, and no worker has said it"


def _overlaps(job_id: str, attempts: Sequence[Line]) -> Iterable[str]:
    for one, following in pairwise(attempts):
        if following["start_time"] < one["end_time"]:
            yield f"{job_id}: claim {following['claim']} began before {one['claim']} had ended"
