"""Who there is and who may do what, as an operator sets it up."""

from collections.abc import Sequence

from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import DatasetNotFound, UserNotFound
from jobs_service.model.job import RunType
from jobs_service.storage.database import Database, Transaction

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
    """Users, data sets, permissions. Every change can be repeated and counts from the next call on.

    SOEIDs are in lower case. Every operation raises DatabaseUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_user_ids(self, soeids: Sequence[str]) -> list[int | None]:
        """Return the id of each SOEID, None where nobody has it, in the order asked."""
        with self._database.one_statement() as tx:
            found = tx.access.user_ids(soeids)
        return [found.get(soeid) for soeid in soeids]

    def put_user(self, soeid: str, role: Role) -> int:
        """Add a user, or give the one there is this role. Returns the user's id."""
        with self._database.transaction() as tx:
            return tx.access.put_user(soeid, role)

    def put_dataset(self, dataset_id: int, name: str) -> None:
        """Add a data set, or give the one there is this name."""
        with self._database.transaction() as tx:
            tx.access.put_dataset(dataset_id, name)

    def grant(self, soeid: str, dataset_id: int, level: Level) -> None:
        """Set the user's level on the data set. Raises UserNotFound, DatasetNotFound."""
        with self._database.transaction() as tx:
            user_id = _user_id(tx, soeid)
            if not tx.access.dataset_exists(dataset_id):
                raise DatasetNotFound(dataset_id=dataset_id)
            tx.access.grant(user_id, dataset_id, level)

    def revoke(self, soeid: str, dataset_id: int) -> bool:
        """Take the user's level on the data set away; whether there was one. Raises UserNotFound."""
        with self._database.transaction() as tx:
            return tx.access.revoke(_user_id(tx, soeid), dataset_id)

    def grant_run_type(self, soeid: str, run_type: RunType) -> None:
        """Let a service work on jobs of this run type. Raises UserNotFound."""
        with self._database.transaction() as tx:
            tx.access.grant_run_type(_user_id(tx, soeid), run_type)

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


def _user_id(tx: Transaction, soeid: str) -> int:
    user_id = tx.access.user_ids([soeid]).get(soeid)
    if user_id is None:
        raise UserNotFound(user_soeid=soeid)
    return user_id
