"""What follows when claims and jobs end, whoever ends them: history, queue, places, dependants."""

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from jobs_service.core.dependants import tell
from jobs_service.model.caller import Caller
from jobs_service.model.endings import Ending
from jobs_service.model.job import JobStatus
from jobs_service.storage.database import Transaction
from jobs_service.storage.ending_store import Ended
from jobs_service.storage.event_store import Event


def end_claims(
    tx: Transaction, endings: Sequence[Ending], actors: Mapping[UUID, Caller], *, wait: bool
) -> None:
    """End the claims of jobs that are held, each given once; actors: who ends it, by job id.

    wait: for who fills the same places, see follow_up.
    """
    if not endings:
        return
    ended = tx.endings.end(endings)
    tx.events.append([_event(one, actors[one.job.job_id], ended[one.job.job_id]) for one in endings])
    follow_up(
        tx,
        back=[one.job.job_id for one in endings if one.will_retry],
        ended=[one.job.job_id for one in endings if not one.will_retry],
        freed={one.job.dataset_id for one in endings if ended[one.job.job_id].limited},
        wait=wait,
    )


def follow_up(
    tx: Transaction,
    *,
    back: Collection[UUID] = (),
    ended: Collection[UUID] = (),
    freed: Collection[int] = (),
    wait: bool,
) -> None:
    """Do what comes after jobs were changed, all of which are locked.

    back: now PENDING, and waiting for no other job; they enter the queue. ended: now terminal; their
    dependants are told. freed: limited data sets in which places were freed. wait: for whoever fills
    places of the same; else those are left to upkeep.
    """
    enqueued = tx.queue.enqueue(back)
    told = tell(tx, ended) if ended else None
    # Last, and once for all: whoever waits for places holds no others.
    filled = tx.places.fill(enqueued.limited.union(freed, told.limited if told else ()), wait=wait)
    tx.news.ready |= enqueued.run_types.union(filled, told.run_types if told else ())


def _event(ending: Ending, actor: Caller, ended: Ended) -> Event:
    return Event(
        type=ending.event,
        job_id=ending.job.job_id,
        run_type=ending.job.run_type,
        actor=actor,
        status_before=JobStatus.RUNNING,
        status_after=ending.status,
        time=ended.time,
        reason=ending.reason,
    )
