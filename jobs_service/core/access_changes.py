"""Changes of users, data sets and permissions: each checked, made and recorded in one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobs_service.core import permissions
from jobs_service.core.orphans import Orphans
from jobs_service.core.permissions import Action
from jobs_service.core.signals import Signals
from jobs_service.model.access import (
    OPERATOR,
    AccessEventType,
    Actor,
    Changed,
    Dataset,
    Permission,
    User,
    caller_of,
)
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import DatabaseUnavailable, DatasetNotFound, RowLocked, UserNotFound
from jobs_service.model.job import RunType
from jobs_service.storage.access_events import AccessEvent
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Database, Transaction


class AccessChanges:
    """What one actor changes. Every change can be repeated and counts from the next call on, everywhere.

    SOEIDs are in lower case. Every operation raises DatabaseUnavailable (TransactionRolledBack where it
    may be rerun as it is), RowLocked where another change takes too long, and for a Caller CallerUnknown,
    UserNotFound (of an on-behalf call) and RoleRequired.
    """

    def __init__(self, database: Database, signals: Signals, *, by: Actor) -> None:
        self._database = database
        self._signals = signals
        self._by = by

    def put_user(self, soeid: str, role: Role) -> Changed[User]:
        """Add a user, or give the one there is this role."""
        with self._changing() as tx:
            before = tx.access_list.user(soeid)
            if before is not None and before.role is role:
                return Changed(before, changed=False)
            tx.access.put_user(soeid, role)
            user = _user(tx, soeid)
            self._record(tx, AccessEventType.USER_PUT, user=user, value=role.value)
        return Changed(user, changed=True)

    def delete_user(self, soeid: str) -> bool:
        """Delete a user with all that was granted to it; whether there was one. Its jobs go on."""
        with self._changing() as tx:
            user = tx.access_list.user(soeid)
            if user is None:
                return False
            tx.access.delete_user(soeid)
            self._record(tx, AccessEventType.USER_DELETED, user=user)
        return True

    def put_dataset(self, dataset_id: int, name: str) -> Changed[Dataset]:
        """Add a data set, or give the one there is this name."""
        with self._changing() as tx:
            before = tx.access_list.dataset(dataset_id)
            if before is not None and before.name == name:
                return Changed(before, changed=False)
            # One of this id that was deleted before has its time before this one is there.
            tx.deleted_datasets.settle()
            tx.access.put_dataset(dataset_id, name)
            self._record(tx, AccessEventType.DATASET_PUT, dataset_id=dataset_id, value=name)
            return Changed(_dataset(tx, dataset_id), changed=True)

    def delete_dataset(self, dataset_id: int) -> bool:
        """Delete a data set, its permissions and its limit; whether there was one. Its jobs are cancelled."""
        with self._changing() as tx:
            if not tx.access.delete_dataset(dataset_id):
                return False
            tx.deleted_datasets.add(dataset_id, by=caller_of(self._by))
            self._record(tx, AccessEventType.DATASET_DELETED, dataset_id=dataset_id)
        # Transactions of their own: this one holds rows that others lock after the jobs. The data set is
        # deleted whatever becomes of them, and upkeep goes on.
        with suppress(DatabaseUnavailable, RowLocked):
            Orphans(self._database, self._signals).cancel_of(dataset_id)
        return True

    def set_limit(self, dataset_id: int, max_running: int | None) -> Changed[Dataset]:
        """Let so many jobs of the data set run at once, or any number. Raises DatasetNotFound."""
        with self._changing() as tx:
            before = _dataset(tx, dataset_id)
            if before.max_running == max_running:
                return Changed(before, changed=False)
            tx.places.keep_running(dataset_id)
            tx.access.set_limit(dataset_id, max_running)
            tx.places.relabel(dataset_id)
            filled = tx.places.fill([dataset_id])
            # What a removed limit held may be of any run type.
            tx.news.ready |= filled if max_running else set(RunType)
            value = "none" if max_running is None else str(max_running)
            self._record(tx, AccessEventType.DATASET_LIMITED, dataset_id=dataset_id, value=value)
            after = _dataset(tx, dataset_id)
        self._signals.tell(tx.news)
        return Changed(after, changed=True)

    def grant(self, soeid: str, dataset_id: int, level: Level) -> Changed[Permission]:
        """Set the user's level on the data set. Raises UserNotFound, DatasetNotFound."""
        with self._changing() as tx:
            user, _ = _user(tx, soeid), _dataset(tx, dataset_id)
            permission = Permission(user.user_id, soeid, dataset_id, level)
            if tx.access_list.level(user.user_id, dataset_id) is level:
                return Changed(permission, changed=False)
            tx.access.grant(user.user_id, dataset_id, level)
            self._record(
                tx, AccessEventType.PERMISSION_GRANTED, user=user, dataset_id=dataset_id, value=level.word
            )
        return Changed(permission, changed=True)

    def revoke(self, soeid: str, dataset_id: int) -> bool:
        """Take the user's level on the data set away; whether there was one. Raises UserNotFound."""
        with self._changing() as tx:
            user = _user(tx, soeid)
            if not tx.access.revoke(user.user_id, dataset_id):
                return False
            self._record(tx, AccessEventType.PERMISSION_REVOKED, user=user, dataset_id=dataset_id)
        return True

    def grant_run_type(self, soeid: str, run_type: RunType) -> Changed[User]:
        """Let a service work on jobs of this run type. Raises UserNotFound."""
        with self._changing() as tx:
            user = _user(tx, soeid)
            if run_type in user.run_types:
                return Changed(user, changed=False)
            tx.access.grant_run_type(user.user_id, run_type)
            self._record(tx, AccessEventType.RUN_TYPE_GRANTED, user=user, value=run_type.value)
            return Changed(_user(tx, soeid), changed=True)

    def revoke_run_type(self, soeid: str, run_type: RunType) -> Changed[User]:
        """Keep a service from work on jobs of this run type. Raises UserNotFound."""
        with self._changing() as tx:
            user = _user(tx, soeid)
            if not tx.access.revoke_run_type(user.user_id, run_type):
                return Changed(user, changed=False)
            self._record(tx, AccessEventType.RUN_TYPE_REVOKED, user=user, value=run_type.value)
            return Changed(_user(tx, soeid), changed=True)

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        """A transaction in which nobody else changes anything here, for an actor who may."""
        with self._database.transaction() as tx:
            # First: who was an admin when the change before this one began may be none after it.
            tx.access.lock()
            require_admin(tx, self._by)
            yield tx

    def _record(
        self,
        tx: Transaction,
        kind: AccessEventType,
        *,
        user: User | None = None,
        dataset_id: int | None = None,
        value: str | None = None,
    ) -> None:
        event = AccessEvent(
            type=kind,
            user_id=user.user_id if user else None,
            user_soeid=user.soeid if user else None,
            dataset_id=dataset_id,
            value=value,
        )
        tx.access_events.append(event, by=self._by)


def require_admin(tx: Transaction, by: Actor) -> None:
    """Check that this actor may. Raises CallerUnknown, UserNotFound, RoleRequired."""
    if by is OPERATOR:
        return
    standing = tx.access.standings([StandingQuestion(by)])[0]
    permissions.require_known(by, standing)
    permissions.require_role(Action.ADMINISTER, standing)


def _user(tx: Transaction, soeid: str) -> User:
    user = tx.access_list.user(soeid, hold=True)
    if user is None:
        raise UserNotFound(user_soeid=soeid)
    return user


def _dataset(tx: Transaction, dataset_id: int) -> Dataset:
    dataset = tx.access_list.dataset(dataset_id, hold=True)
    if dataset is None:
        raise DatasetNotFound(dataset_id=dataset_id)
    return dataset
