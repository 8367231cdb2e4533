"""What the permission matrices share: levels and what they allow, who acts for whom, and answers as lines."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from jobs_service.model.caller import Level, Role
from tests.support.client import Client, rich_error
from tests.support.world import User, World

THREADS = 8

LEVELS = {"none": None, "read": Level.READ, "write": Level.WRITE, "admin": Level.ADMIN}
ALLOWED: dict[str, set[str]] = {
    "none": set(),
    "read": {"see", "explore", "use as a source"},
    "write": {"see", "explore", "use as a source", "write", "cancel"},
    "admin": {"see", "explore", "use as a source", "write", "cancel"},
    "missing": set(),
}
"""What a level on the data set lets somebody do; missing: there is no such data set."""

SENDERS = {Role.SERVICE, Role.ADMIN}
"""Who may call on behalf of a user."""

ITSELF = ("itself", "itself, named in the header")
ACTS_FOR = (*ITSELF, "the owner", "another user")

ROLE_REQUIRED = "PERMISSION_DENIED ROLE_REQUIRED required_role"


def answer(call: Callable[[], str], names: dict[str, str]) -> str:
    """What a call answered as one line. names: what to write in place of ids."""
    try:
        return call()
    except grpc.RpcError as error:
        rich = rich_error(error)
    values = [f"{key}={names.get(value, value)}" for key, value in sorted(rich.metadata.items())]
    if rich.reason == "ROLE_REQUIRED":
        values = sorted(rich.metadata)
    return " ".join([rich.code, rich.reason, *values])


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What the work makes of each item, in their order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def assert_none(wrong: Sequence[str]) -> None:
    """AssertionError with the first of what is wrong."""
    assert not wrong, "\n".join([f"{len(wrong)} cells are wrong, the first:", *wrong[:25]])


class Cast:
    """A sender, the owner of the jobs it does not own itself, and another user."""

    def __init__(self, world: World) -> None:
        self.world = world
        # A service while the stage is set, so that it can make jobs for the owner.
        self.sender = world.user(Role.SERVICE)
        self.owner = world.user()
        self.other = world.user()

    def client(self, acts_for: str) -> Client:
        """The sender's client. acts_for: one of ACTS_FOR."""
        subject = {
            "itself": None,
            "itself, named in the header": self.sender,
            "the owner": self.owner,
            "another user": self.other,
        }[acts_for]
        return self.world.client(self.sender, on_behalf_of=subject)

    def set_level(self, user: User, dataset_id: int, level: Level | None) -> None:
        """Give a user this level and no other; None: none."""
        if level is None:
            self.world.access.revoke(user.soeid, dataset_id)
        else:
            self.world.access.grant(user.soeid, dataset_id, level)
