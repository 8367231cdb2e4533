"""Users, data sets and permissions as they are shown."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Select, bindparam, func, literal, select, tuple_

from jobs_service.model.access import Dataset, Permission, PermissionPlace, User
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import RunType
from jobs_service.storage.queue_tables import dataset_limits
from jobs_service.storage.tables import dataset_permissions, datasets, run_type_grants, users

_run_types = (
    select(func.array_agg(run_type_grants.c.run_type))
    .where(run_type_grants.c.user_id == users.c.user_id)
    .scalar_subquery()
)
_max_running = (
    select(dataset_limits.c.max_running)
    .where(dataset_limits.c.dataset_id == datasets.c.dataset_id)
    .scalar_subquery()
)
_USER = select(users, _run_types.label("run_types")).where(users.c.soeid == bindparam("soeid"))
_DATASET = select(datasets, _max_running.label("max_running")).where(
    datasets.c.dataset_id == bindparam("dataset_id")
)
_LEVEL = select(dataset_permissions.c.level).where(
    dataset_permissions.c.user_id == bindparam("user_id"),
    dataset_permissions.c.dataset_id == bindparam("dataset_id"),
)


@dataclass(frozen=True, slots=True)
class PermissionFilter:
    """Whose permissions, and on what; None: everybody's, on everything."""

    user_id: int | None = None
    dataset_id: int | None = None


class AccessList:
    """Reads who there is and who may do what.

    hold: until the transaction ends nobody deletes what was found, not even without this service.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def user(self, soeid: str, *, hold: bool = False) -> User | None:
        """Return the user of a SOEID in lower case."""
        row = self._connection.execute(_held(_USER, users, hold), {"soeid": soeid}).first()
        if row is None:
            return None
        granted = set(row.run_types or ())
        return User(
            row.user_id, row.soeid, Role(row.role), tuple(each for each in RunType if each in granted)
        )

    def dataset(self, dataset_id: int, *, hold: bool = False) -> Dataset | None:
        """Return the data set of an id."""
        found = self._connection.execute(_held(_DATASET, datasets, hold), {"dataset_id": dataset_id}).first()
        return None if found is None else Dataset(found.dataset_id, found.name, found.max_running)

    def level(self, user_id: int, dataset_id: int) -> Level | None:
        """Return the level that a user has on a data set."""
        found = self._connection.execute(_LEVEL, {"user_id": user_id, "dataset_id": dataset_id}).scalar()
        return None if found is None else Level[found.upper()]

    def permissions(
        self, wanted: PermissionFilter, *, after: PermissionPlace | None, limit: int
    ) -> list[Permission]:
        """Return permissions after this place, by user, then by data set."""
        place = (dataset_permissions.c.user_id, dataset_permissions.c.dataset_id)
        query = (
            select(dataset_permissions, users.c.soeid)
            .join(users, users.c.user_id == dataset_permissions.c.user_id)
            .order_by(*place)
            .limit(limit)
        )
        if wanted.user_id is not None:
            query = query.where(dataset_permissions.c.user_id == wanted.user_id)
        if wanted.dataset_id is not None:
            query = query.where(dataset_permissions.c.dataset_id == wanted.dataset_id)
        if after is not None:
            last = (literal(after.user_id, BigInteger), literal(after.dataset_id, BigInteger))
            query = query.where(tuple_(*place) > tuple_(*last))
        return [_permission(row) for row in self._connection.execute(query)]


def _held(query: Select[Any], table: Any, hold: bool) -> Select[Any]:
    return query.with_for_update(read=True, key_share=True, of=table) if hold else query


def _permission(row: Row[Any]) -> Permission:
    return Permission(row.user_id, row.soeid, row.dataset_id, Level[row.level.upper()])
