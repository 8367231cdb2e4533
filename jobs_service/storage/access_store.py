"""Users, roles, data sets and permissions: who stands how, and every change."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    ScalarSelect,
    bindparam,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from jobs_service.model.caller import Caller, Level, Role, Standing
from jobs_service.model.job import RunType
from jobs_service.storage.queue_tables import dataset_limits
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import (
    dataset_permissions,
    datasets,
    run_type_grants,
    users,
)

_asked = recordset(
    "asked",
    {"n": Integer(), "caller_id": BigInteger(), "subject_id": BigInteger(), "dataset_id": BigInteger()},
)


def role_of(user_id: ColumnElement[int]) -> ScalarSelect[str]:
    """Return the expression of the role that this user has, null for nobody."""
    # A lookup of its own, as the next one: joined to a batch, which the planner takes for 100 rows, it
    # read all users and all permissions for a single question.
    return select(users.c.role).where(users.c.user_id == user_id).scalar_subquery()


def level_of(user_id: ColumnElement[int], dataset_id: ColumnElement[int]) -> ScalarSelect[str]:
    """Return the expression of the level that this user has on the data set, null for none."""
    permission = (dataset_permissions.c.user_id == user_id) & (dataset_permissions.c.dataset_id == dataset_id)
    return select(dataset_permissions.c.level).where(permission).scalar_subquery()


def sees(user_id: ColumnElement[int], job: FromClause) -> ColumnElement[bool]:
    """Return the condition that this user sees the job of a row."""
    return or_(
        role_of(user_id) == Role.ADMIN.value,
        job.c.owner_id == user_id,
        job.c.creator_id == user_id,
        level_of(user_id, job.c.dataset_id).is_not(None),
    )


_dataset_name = select(datasets.c.name).where(datasets.c.dataset_id == _asked.c.dataset_id).scalar_subquery()
_STANDINGS = (
    select(
        role_of(_asked.c.caller_id).label("caller_role"),
        role_of(_asked.c.subject_id).label("subject_role"),
        level_of(_asked.c.subject_id, _asked.c.dataset_id).label("level"),
        _dataset_name.label("dataset_name"),
    )
    .select_from(_asked)
    .order_by(_asked.c.n)
)
_dataset_ids = bindparam("dataset_ids", type_=ARRAY(BigInteger))
_KEEP_DATASETS = (
    select(datasets.c.dataset_id)
    .where(datasets.c.dataset_id == func.any(_dataset_ids))
    .order_by(datasets.c.dataset_id)
    .with_for_update(read=True, key_share=True)
)
_KEEP_DATASETS_FREE = _KEEP_DATASETS.with_for_update(read=True, key_share=True, skip_locked=True)
# Of the changes, which are few: what one has read and decided holds until it commits, for the history too.
# The number is this lock's own, as the one in storage/schema.py.
_LOCK = select(func.pg_advisory_xact_lock(0x6A6F62735F616363))
_EXISTING = select(users.c.user_id).where(users.c.user_id == bindparam("user_id"))
_BY_SOEID = select(users.c.soeid, users.c.user_id).where(users.c.soeid == func.any(bindparam("soeids")))


@dataclass(frozen=True, slots=True)
class StandingQuestion:
    """How does this caller stand, on this data set if one is given?"""

    caller: Caller
    dataset_id: int | None = None


def level_named(word: str | None) -> Level | None:
    """Return the level that the database wrote as this word."""
    return None if word is None else Level[word.upper()]


def role_named(word: str | None) -> Role | None:
    """Return the role that the database wrote as this word."""
    return None if word is None else Role(word)


class AccessStore:
    """Who there is, and who may do what."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def standings(self, questions: Sequence[StandingQuestion]) -> list[Standing]:
        """Answer each question, in the order asked. Nobody and nothing is skipped: unknown is None."""
        asked = [
            {
                "n": n,
                "caller_id": question.caller.user_id,
                "subject_id": question.caller.subject_id,
                "dataset_id": question.dataset_id,
            }
            for n, question in enumerate(questions)
        ]
        return [
            Standing(
                caller_role=role_named(row.caller_role),
                subject_role=role_named(row.subject_role),
                level=level_named(row.level),
                dataset_exists=row.dataset_name is not None,
                dataset_name=row.dataset_name,
            )
            for row in self._connection.execute(_STANDINGS, rows(asked))
        ]

    def keep_datasets(self, dataset_ids: Collection[int], *, wait: bool) -> set[int]:
        """Keep these data sets from being deleted until the transaction ends; returns those that there are.

        wait: for a transaction that is deleting one, which raises RowLocked after the lock limit; else that
        one is left out.
        """
        statement = _KEEP_DATASETS if wait else _KEEP_DATASETS_FREE
        return set(self._connection.execute(statement, {"dataset_ids": sorted(dataset_ids)}).scalars())

    def user_exists(self, user_id: int) -> bool:
        """Whether there is a user of that id."""
        return self._connection.execute(_EXISTING, {"user_id": user_id}).first() is not None

    def user_ids(self, soeids: Collection[str]) -> dict[str, int]:
        """Return the ids of those of these SOEIDs (in lower case) that somebody has."""
        found = self._connection.execute(_BY_SOEID, {"soeids": list(soeids)})
        return {row.soeid: row.user_id for row in found}

    def is_empty(self) -> bool:
        """Whether there is no user yet."""
        return self._connection.execute(select(users.c.user_id).limit(1)).first() is None

    def lock(self) -> None:
        """Wait until no other transaction changes users, data sets or permissions, and keep them out."""
        self._connection.execute(_LOCK)

    def put_user(self, soeid: str, role: Role) -> int:
        """Add a user, or give the one there is this role. Returns the id."""
        statement = insert(users).values(soeid=soeid, role=role.value)
        statement = statement.on_conflict_do_update(
            index_elements=[users.c.soeid], set_={"role": statement.excluded.role}
        )
        return int(self._connection.execute(statement.returning(users.c.user_id)).scalar_one())

    def put_dataset(self, dataset_id: int, name: str) -> None:
        """Add a data set, or give the one there is this name."""
        statement = insert(datasets).values(dataset_id=dataset_id, name=name)
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[datasets.c.dataset_id], set_={"name": statement.excluded.name}
            )
        )

    def delete_user(self, soeid: str) -> int | None:
        """Delete a user with all that was granted to it. Returns the id it had, None where nobody has it."""
        statement = delete(users).where(users.c.soeid == soeid).returning(users.c.user_id)
        return self._connection.execute(statement).scalar()

    def delete_dataset(self, dataset_id: int) -> bool:
        """Delete a data set with its permissions and limit. Returns whether there was one."""
        statement = delete(datasets).where(datasets.c.dataset_id == dataset_id)
        return self._connection.execute(statement).rowcount > 0

    def set_limit(self, dataset_id: int, max_running: int | None) -> None:
        """Let so many jobs of the data set run at once, or any number. It must exist."""
        if max_running is None:
            gone = delete(dataset_limits).where(dataset_limits.c.dataset_id == dataset_id)
            self._connection.execute(gone)
            return
        statement = insert(dataset_limits).values(dataset_id=dataset_id, max_running=max_running)
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[dataset_limits.c.dataset_id],
                set_={"max_running": statement.excluded.max_running},
            )
        )

    def grant(self, user_id: int, dataset_id: int, level: Level) -> None:
        """Set the user's level on the data set. Both must exist."""
        statement = insert(dataset_permissions).values(
            user_id=user_id, dataset_id=dataset_id, level=level.word
        )
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[dataset_permissions.c.user_id, dataset_permissions.c.dataset_id],
                set_={"level": statement.excluded.level},
            )
        )

    def revoke(self, user_id: int, dataset_id: int) -> bool:
        """Take the user's level on the data set away. Returns whether there was one."""
        statement = delete(dataset_permissions).where(
            dataset_permissions.c.user_id == user_id, dataset_permissions.c.dataset_id == dataset_id
        )
        return self._connection.execute(statement).rowcount > 0

    def grant_run_type(self, user_id: int, run_type: RunType) -> None:
        """Let the service work on jobs of this run type. The user must exist."""
        statement = insert(run_type_grants).values(user_id=user_id, run_type=run_type.value)
        self._connection.execute(statement.on_conflict_do_nothing())

    def revoke_run_type(self, user_id: int, run_type: RunType) -> bool:
        """Keep the service from work on jobs of this run type. Returns whether it was granted."""
        statement = delete(run_type_grants).where(
            run_type_grants.c.user_id == user_id, run_type_grants.c.run_type == run_type.value
        )
        return self._connection.execute(statement).rowcount > 0
