"""Who there is and who may do what: shown, looked up, and changed through AccessChanges."""

from collections.abc import Sequence

from jobs_service.core.access_changes import AccessChanges, require_admin
from jobs_service.core.signals import Signals
from jobs_service.model.access import Actor, PermissionsPage, PermissionsRequest
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import DatasetNotFound, UserNotFound
from jobs_service.model.job import RunType
from jobs_service.storage.access_list import PermissionFilter
from jobs_service.storage.database import Database

_DEMO_USERS = (
    # In this order they get the ids 1 to 5.
    ("ad00001", Role.ADMIN),
    ("sv00001", Role.SERVICE),
    ("al00001", Role.USER),
    ("bo00001", Role.USER),
    ("ev00001", Role.USER),
)
_DEMO_DATASETS = ((1, "sales"), (2, "customers"))
_DEMO_PERMISSIONS = (("al00001", 1, Level.WRITE), ("bo00001", 1, Level.READ))


class AccessService:
    """Users, data sets, permissions. SOEIDs are in lower case. Every operation raises DatabaseUnavailable."""

    def __init__(self, database: Database, signals: Signals | None = None) -> None:
        self._database = database
        self._signals = signals or Signals()

    def find_user_ids(self, soeids: Sequence[str]) -> list[int | None]:
        """Return the id of each SOEID, None where nobody has it, in the order asked."""
        with self._database.one_statement() as tx:
            found = tx.access.user_ids(soeids)
        return [found.get(soeid) for soeid in soeids]

    def changes(self, *, by: Actor) -> AccessChanges:
        """Return the changes, as this actor makes them."""
        return AccessChanges(self._database, self._signals, by=by)

    def list_permissions(self, request: PermissionsRequest, *, by: Actor, seconds: float) -> PermissionsPage:
        """Return a page of who may do what, and the user and the data set that were asked for.

        seconds: what one statement may take, else DeadlineExceeded. Raises CallerUnknown, RoleRequired,
        UserNotFound (of an on-behalf call, or the one asked for), DatasetNotFound.
        """
        with self._database.snapshot(seconds=seconds) as tx:
            require_admin(tx, by)
            user = None if request.soeid is None else tx.access_list.user(request.soeid)
            dataset = None if request.dataset_id is None else tx.access_list.dataset(request.dataset_id)
            if request.soeid is not None and user is None:
                raise UserNotFound(user_soeid=request.soeid)
            if request.dataset_id is not None and dataset is None:
                raise DatasetNotFound(dataset_id=request.dataset_id)
            wanted = PermissionFilter(user.user_id if user else None, request.dataset_id)
            found = tx.access_list.permissions(wanted, after=request.after, limit=request.page_size + 1)
        page = found[: request.page_size]
        return PermissionsPage(page, more=len(page) < len(found), user=user, dataset=dataset)

    def fill_if_empty(self) -> bool:
        """Add the demo to a database that has no user yet; whether it did."""
        with self._database.transaction() as tx:
            if not tx.access.is_empty():
                return False
            ids = {soeid: tx.access.put_user(soeid, role) for soeid, role in _DEMO_USERS}
            for dataset_id, name in _DEMO_DATASETS:
                tx.access.put_dataset(dataset_id, name)
            for soeid, dataset_id, level in _DEMO_PERMISSIONS:
                tx.access.grant(ids[soeid], dataset_id, level)
            for run_type in RunType:
                tx.access.grant_run_type(ids["sv00001"], run_type)
            return True
