"""The history of users, data sets and permissions: appended to in the transaction of the change itself."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert

from jobs_service.model.access import OPERATOR, AccessEventType, Actor
from jobs_service.storage.tables import access_events


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessEvent:
    """What was changed: whose, on which data set; the role, name, level, run type or limit that was set."""

    type: AccessEventType
    user_id: int | None = None
    user_soeid: str | None = None
    dataset_id: int | None = None
    value: str | None = None


class AccessEvents:
    """The access_events table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def append(self, event: AccessEvent, *, by: Actor) -> None:
        """Append this event. Its time is now, not when the transaction began to wait for others."""
        caller = None if by is OPERATOR else by
        statement = insert(access_events).values(
            type=event.type.value,
            actor_id=caller.user_id if caller else None,
            actor_soeid=caller.soeid if caller else None,
            user_id=event.user_id,
            user_soeid=event.user_soeid,
            dataset_id=event.dataset_id,
            value=event.value,
            time=func.statement_timestamp(),
        )
        self._connection.execute(statement)
