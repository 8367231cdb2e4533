"""The history of the jobs: appended to in the transaction of the change itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Connection, DateTime, Text, Uuid, insert, select

from jobs_service.model.caller import Caller
from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.states import EventType
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import job_events


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a job: by whom, why, from which status to which, when (database's clock)."""

    type: EventType
    job_id: UUID
    run_type: RunType
    actor: Caller
    status_before: JobStatus | None
    status_after: JobStatus
    time: datetime
    reason: str | None = None


_new = recordset(
    "new",
    {
        "type": Text(),
        "job_id": Uuid(),
        "run_type": Text(),
        "actor_id": BigInteger(),
        "actor_soeid": Text(),
        "on_behalf_of_id": BigInteger(),
        "on_behalf_of_soeid": Text(),
        "reason": Text(),
        "status_before": Text(),
        "status_after": Text(),
        "time": DateTime(timezone=True),
    },
)
_APPEND = insert(job_events).from_select([column.name for column in _new.columns], select(_new))


class EventStore:
    """The job_events table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def append(self, events: Sequence[Event]) -> None:
        """Append these events. SOEIDs are kept as text: ids alone say nothing once a user is gone."""
        if events:
            self._connection.execute(_APPEND, rows(_record(event) for event in events))


def _record(event: Event) -> dict[str, object]:
    on_behalf_of = event.actor.on_behalf_of
    return {
        "type": event.type,
        "job_id": event.job_id,
        "run_type": event.run_type,
        "actor_id": event.actor.user_id,
        "actor_soeid": event.actor.soeid,
        "on_behalf_of_id": None if on_behalf_of is None else on_behalf_of.user_id,
        "on_behalf_of_soeid": None if on_behalf_of is None else on_behalf_of.soeid,
        "reason": event.reason,
        "status_before": event.status_before,
        "status_after": event.status_after,
        "time": event.time,
    }
