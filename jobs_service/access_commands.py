"""The commands that keep users, data sets and permissions: the core's changes, made from a terminal."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs_service.config import Config
from jobs_service.core.access_changes import AccessChanges
from jobs_service.core.access_service import AccessService
from jobs_service.core.validation import MAX_PAGE_SIZE, check_dataset_name
from jobs_service.model.access import OPERATOR, Dataset, PermissionPlace, PermissionsRequest, User
from jobs_service.model.caller import Level, Role, normalized_soeid
from jobs_service.model.job import RunType
from jobs_service.opening import open_storage

_SECONDS = 30.0
_Commands = Any  # what add_subparsers returns, which argparse gives no public name
_Run = Callable[[Config, argparse.Namespace], None]


def add_to(commands: _Commands) -> None:
    """Add the commands to a parser's."""
    user = _group(commands, "user", "add and delete users")
    _add(user, "add", _user_add, "add a user, or give the one there is this role", "soeid").add_argument(
        "--role", required=True, choices=[role.value for role in Role]
    )
    _add(user, "delete", _user_delete, "delete a user; its jobs go on without an owner", "soeid")
    dataset = _group(commands, "dataset", "add, limit and delete data sets")
    _add(
        dataset, "add", _dataset_add, "add a data set, or give the one there is this name", "id"
    ).add_argument("name", type=_dataset_name)
    _add(
        dataset, "limit", _dataset_limit, "let so many jobs of a data set run at once, or any number", "id"
    ).add_argument("max_running", type=_max_running, metavar="N|none")
    _add(dataset, "delete", _dataset_delete, "delete a data set and cancel its jobs", "id")
    _add(
        commands, "grant", _grant, "give a user a permission on a data set", "soeid", "dataset_id"
    ).add_argument("level", choices=[level.word for level in Level])
    _add(commands, "revoke", _revoke, "take a user's permission on a data set away", "soeid", "dataset_id")
    for name, run, about in (
        ("grant-run-type", _grant_run_type, "let a service work on a run type"),
        ("revoke-run-type", _revoke_run_type, "keep a service from work on a run type"),
    ):
        _add(commands, name, run, about, "soeid").add_argument(
            "run_type", choices=[run_type.value for run_type in RunType]
        )
    listing = _add(commands, "permissions", _permissions, "show who may do what")
    listing.add_argument("--user", type=soeid, metavar="SOEID", help="of this user, with its run types")
    listing.add_argument("--dataset", type=_dataset_id, metavar="ID", help="on this data set, with its limit")


def _group(commands: _Commands, name: str, about: str) -> _Commands:
    return commands.add_parser(name, help=about).add_subparsers(required=True, metavar="COMMAND")


def _add(commands: _Commands, name: str, run: _Run, about: str, *arguments: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}."
    )
    added.set_defaults(run=run)
    for argument in arguments:
        added.add_argument(argument, type=soeid if argument == "soeid" else _dataset_id)
    return added


def soeid(text: str) -> str:
    """Read a SOEID, for argparse."""
    normalized = normalized_soeid(text)
    if normalized is None:
        raise argparse.ArgumentTypeError("a SOEID is two letters and five digits")
    return normalized


def _dataset_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError("the id of a data set is a positive integer")
    return int(text)


def _dataset_name(text: str) -> str:
    for violation in check_dataset_name(text):
        raise argparse.ArgumentTypeError(f"the name of a data set {violation.description}")
    return text


def _max_running(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError("a limit is a positive integer, or none")
    return int(text)


@contextmanager
def _access(config: Config) -> Iterator[AccessService]:
    with open_storage(config, migrate=False, exclusive=False) as storage:
        yield AccessService(storage.database)


@contextmanager
def _changes(config: Config) -> Iterator[AccessChanges]:
    with _access(config) as access:
        yield access.changes(by=OPERATOR)


def _before(changed: bool) -> str:
    return "" if changed else ", as before"


def _user_add(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        user = changes.put_user(parsed.soeid, Role(parsed.role)).now
    print(f"user {user.soeid} has id {user.user_id} and role {user.role}")


def _user_delete(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changed = changes.delete_user(parsed.soeid)
    print(f"there is no user {parsed.soeid}{_before(changed)}")


def _dataset_add(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changes.put_dataset(parsed.id, parsed.name)
    print(f"data set {parsed.id} is called {parsed.name}")


def _dataset_limit(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        dataset = changes.set_limit(parsed.id, parsed.max_running).now
    print(_limit_of(dataset))


def _limit_of(dataset: Dataset) -> str:
    if dataset.max_running is None:
        return f"data set {dataset.dataset_id} has no limit of running jobs"
    return f"data set {dataset.dataset_id} has at most {dataset.max_running} running jobs"


def _dataset_delete(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changed = changes.delete_dataset(parsed.id)
    print(f"there is no data set {parsed.id}{_before(changed)}")


def _grant(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changes.grant(parsed.soeid, parsed.dataset_id, Level[parsed.level.upper()])
    print(f"{parsed.soeid} has {parsed.level} on data set {parsed.dataset_id}")


def _revoke(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changed = changes.revoke(parsed.soeid, parsed.dataset_id)
    print(f"{parsed.soeid} has no permission on data set {parsed.dataset_id}{_before(changed)}")


def _grant_run_type(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changes.grant_run_type(parsed.soeid, RunType(parsed.run_type))
    print(f"{parsed.soeid} may work on {parsed.run_type}")


def _revoke_run_type(config: Config, parsed: argparse.Namespace) -> None:
    with _changes(config) as changes:
        changed = changes.revoke_run_type(parsed.soeid, RunType(parsed.run_type)).changed
    print(f"{parsed.soeid} may not work on {parsed.run_type}{_before(changed)}")


def _permissions(config: Config, parsed: argparse.Namespace) -> None:
    after: PermissionPlace | None = None
    with _access(config) as access:
        while True:
            asked = PermissionsRequest(
                soeid=parsed.user, dataset_id=parsed.dataset, page_size=MAX_PAGE_SIZE, after=after
            )
            page = access.list_permissions(asked, by=OPERATOR, seconds=_SECONDS)
            if after is None:
                _show_asked(page.user, page.dataset)
            for permission in page.permissions:
                print(f"{permission.soeid} has {permission.level.word} on data set {permission.dataset_id}")
            if not page.more:
                return
            after = PermissionPlace(page.permissions[-1].user_id, page.permissions[-1].dataset_id)


def _show_asked(user: User | None, dataset: Dataset | None) -> None:
    if user is not None:
        print(f"user {user.soeid} has id {user.user_id} and role {user.role}")
        for run_type in user.run_types:
            print(f"{user.soeid} may work on {run_type}")
    if dataset is not None:
        print(f"data set {dataset.dataset_id} is called {dataset.name}")
        print(_limit_of(dataset))
