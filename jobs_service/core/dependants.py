"""What the end of a job means for those that wait for it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from jobs_service.model.caller import SYSTEM
from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.states import TERMINAL, EventType
from jobs_service.storage.database import Transaction
from jobs_service.storage.dependency_store import FIRST, PICKED, Dependant, Ended, LockedDependant
from jobs_service.storage.event_store import Event

PORTION = 100
"""Dependants that are told in the transaction that ended the job; the others by upkeep."""
UPKEEP_PORTION = 500
_LEVELS = 4
"""Of a chain that are followed in one transaction."""


@dataclass(slots=True)
class Told:
    """What became of dependants.

    run_types: of jobs that can be claimed now. limited: data sets whose places the caller fills.
    """

    run_types: set[RunType] = field(default_factory=set)
    limited: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class WorkedOff:
    """A portion of upkeep. after: where the next one begins, FIRST at the end; progress: it did something."""

    told: Told
    after: UUID
    progress: bool


def tell(tx: Transaction, ended_job_ids: Collection[UUID]) -> Told:
    """Tell those that wait for these jobs, which this transaction has ended, and so holds.

    Who waits for no other job any more is enqueued. Whose dependency has failed is cancelled, unless it
    keeps waiting, and its own dependants are told. At most PORTION, nobody whom another transaction
    holds, and so never waits for a job: what is left is noted for upkeep. After the commit the caller
    tells the run types.
    """
    telling = _Telling(tx, PORTION)
    telling.run([Ended(job_id) for job_id in sorted(ended_job_ids)])
    return telling.told


def work_off(tx: Transaction, *, after: UUID) -> WorkedOff:
    """Tell a portion of the dependants that were left, of the ended jobs next to the one given; see tell."""
    picked = tx.dependencies.pick(after=after)
    ids = [each.job_id for each in picked]
    # Nobody retries them until this is committed. Who holds one now ends it or has it tried again: later.
    statuses = tx.dependencies.share(ids, wait=False) if ids else {}
    held = tx.dependencies.existing(ids) - statuses.keys() if len(statuses) < len(ids) else set()
    telling = _Telling(tx, UPKEEP_PORTION)
    telling.run([each for each in picked if statuses.get(each.job_id) in TERMINAL])
    over = [job_id for job_id in ids if job_id not in held | telling.left]
    if over:
        tx.dependencies.drop(over)
    return WorkedOff(
        telling.told,
        after=ids[-1] if len(ids) == PICKED else FIRST,
        progress=bool(over) or telling.reached > 0,
    )


class _Telling:
    """Tells dependants, one level of a chain after the other, as far as there is room.

    reached: how many were told. left: the ended jobs of which some were not.
    """

    def __init__(self, tx: Transaction, room: int) -> None:
        self._tx = tx
        self._room = room
        self.told = Told()
        self.reached = 0
        self.left: set[UUID] = set()

    def run(self, ended: Sequence[Ended]) -> None:
        for _ in range(_LEVELS):
            if not ended:
                return
            ended = [Ended(job_id) for job_id in self._level(ended)]
        self._room = 0
        if ended:
            self._level(ended)

    def _level(self, ended: Sequence[Ended]) -> list[UUID]:
        """Tell the dependants of these; returns those that were cancelled."""
        found = self._tx.dependencies.dependants(ended, limit=self._room + 1)
        if not found:
            return []
        near = {each.job_id for each in found[: self._room]}
        locked = self._tx.dependencies.lock_free(near) if near else {}
        missed = near - locked.keys()
        stuck = self._tx.dependencies.existing(missed) if missed else set()
        reached = self._note(ended, found, stuck)
        self._room -= len(reached)
        self.reached += len(reached)
        return self._apply(reached, locked)

    def _note(
        self, ended: Sequence[Ended], found: Sequence[Dependant], stuck: Collection[UUID]
    ) -> list[Dependant]:
        """Note who is left; returns those to be told: of each ended job the first, up to one that is stuck.

        None may be told twice, and the note holds no more than the last that was.
        """
        after = {each.job_id: each.after for each in ended}
        reached: list[Dependant] = []
        left: set[UUID] = set()
        for place, each in enumerate(found):
            if place >= self._room or each.job_id in stuck or each.ended_id in left:
                left.add(each.ended_id)
            else:
                reached.append(each)
                after[each.ended_id] = each.job_id
        if left:
            self._tx.dependencies.leave([Ended(job_id, after[job_id]) for job_id in sorted(left)])
        done = {each.ended_id for each in found} - left
        if done:
            # A note of an earlier end, before it was tried again.
            self._tx.dependencies.drop(done)
        self.left |= left
        return reached

    def _apply(self, reached: Sequence[Dependant], locked: Mapping[UUID, LockedDependant]) -> list[UUID]:
        completed: Counter[UUID] = Counter()
        failed: dict[UUID, Dependant] = {}
        for each in reached:
            job = locked.get(each.job_id)
            if job is None or job.status is not JobStatus.PENDING:
                continue
            if each.ended_as is JobStatus.COMPLETED:
                completed[each.job_id] += 1
            elif not job.keep_waiting:
                failed.setdefault(each.job_id, each)
        self._advance({job_id: count for job_id, count in completed.items() if job_id not in failed})
        self._cancel(failed, locked)
        return list(failed)

    def _advance(self, completed: Mapping[UUID, int]) -> None:
        free = self._tx.dependencies.advance(completed) if completed else []
        enqueued = self._tx.queue.enqueue(free)
        self.told.run_types |= enqueued.run_types
        self.told.limited |= enqueued.limited

    def _cancel(self, failed: Mapping[UUID, Dependant], locked: Mapping[UUID, LockedDependant]) -> None:
        """Cancel jobs that wait: they have no place in the queue and no lease."""
        if not failed:
            return
        reasons = {
            job_id: f"dependency {each.ended_id} ended {each.ended_as}" for job_id, each in failed.items()
        }
        moments = self._tx.jobs.cancel({job_id: (SYSTEM.soeid, why) for job_id, why in reasons.items()})
        self._tx.events.append(
            [_event(job_id, locked[job_id], moments[job_id][0], why) for job_id, why in reasons.items()]
        )


def _event(job_id: UUID, job: LockedDependant, moment: datetime, reason: str) -> Event:
    return Event(
        type=EventType.CANCELLED,
        job_id=job_id,
        run_type=job.run_type,
        actor=SYSTEM,
        status_before=job.status,
        status_after=JobStatus.CANCELLED,
        time=moment,
        reason=reason,
    )
