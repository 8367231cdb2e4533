"""Who may call AccessService: every RPC, every role, for itself and on behalf of everybody."""

from typing import Any

import grpc
import pytest

from jobs_service.model.caller import Level, Role
from tests.support.access_requests import RPCS, access_tables, good
from tests.support.client import refused, rich_error
from tests.support.world import User, World

ROLE_REQUIRED = ("PERMISSION_DENIED", "ROLE_REQUIRED")


def answer(world: World, sender: User, rpc: str, fields: dict[str, Any], behalf: Any) -> Any:
    """Code, reason and metadata of what a call is answered; OK."""
    try:
        world.client(sender, on_behalf_of=behalf).access(rpc, **fields)
    except grpc.RpcError as error:
        rich = rich_error(error)
        return (rich.code, rich.reason, rich.metadata)
    return "OK"


@pytest.mark.parametrize("rpc", RPCS)
def test_an_admin_may_and_nobody_else_whatever_was_granted(world: World, rpc: str) -> None:
    dataset, target = world.dataset(), world.user()
    fields = good(rpc, target.soeid, dataset)
    for role in (Role.USER, Role.SERVICE):
        sender = world.user(role, {dataset: Level.ADMIN})
        before = access_tables(world)
        denied = (*ROLE_REQUIRED, {"required_role": "admin"})
        assert answer(world, sender, rpc, fields, None) == denied
        assert answer(world, sender, rpc, fields, sender) == denied, "named in the header"
        assert access_tables(world) == before
    assert answer(world, world.user(Role.ADMIN), rpc, fields, None) == "OK"


@pytest.mark.parametrize("rpc", RPCS)
def test_an_admin_may_name_itself_in_the_header(world: World, rpc: str) -> None:
    admin = world.user(Role.ADMIN)
    fields = good(rpc, world.user().soeid, world.dataset())
    assert answer(world, admin, rpc, fields, admin.soeid.upper()) == "OK"


@pytest.mark.parametrize("sender_role", Role)
@pytest.mark.parametrize("rpc", RPCS)
def test_nobody_may_on_behalf_of_anybody(world: World, rpc: str, sender_role: Role) -> None:
    sender = world.user(sender_role)
    fields = good(rpc, world.user().soeid, world.dataset())
    subjects = {role: world.user(role) for role in Role}
    before = access_tables(world)
    for role, subject in subjects.items():
        got = answer(world, sender, rpc, fields, subject)
        assert got[:2] == ROLE_REQUIRED, (role, got)
    gone = answer(world, sender, rpc, fields, "zz99999")
    no_user = ("NOT_FOUND", "USER_NOT_FOUND", {"user_soeid": "zz99999"})
    assert gone == no_user if sender_role is not Role.USER else gone[:2] == ROLE_REQUIRED
    assert access_tables(world) == before


@pytest.mark.parametrize("rpc", RPCS)
def test_who_may_not_is_told_nothing_of_who_and_what_there_is(world: World, rpc: str) -> None:
    sender = world.user(Role.SERVICE)
    there = good(rpc, world.user().soeid, world.dataset())
    missing = good(rpc, "zz99999", 900_000_123)
    assert answer(world, sender, rpc, there, None) == answer(world, sender, rpc, missing, None)


@pytest.mark.parametrize("rpc", RPCS)
def test_without_credentials_or_a_user_nothing_is_done(world: World, rpc: str) -> None:
    gone = world.user(Role.ADMIN)
    fields = good(rpc, world.user().soeid, world.dataset())
    world.access.delete_user(gone.soeid)
    before = access_tables(world)
    with refused("UNAUTHENTICATED", "CREDENTIALS_MISSING"):
        world.client(None).access(rpc, **fields)
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        world.client(gone).access(rpc, **fields)
    assert access_tables(world) == before


@pytest.mark.parametrize("rpc", RPCS)
def test_an_admin_who_is_none_any_more_may_not(world: World, rpc: str) -> None:
    admin = world.user(Role.ADMIN)
    fields = good(rpc, world.user().soeid, world.dataset())
    world.access.put_user(admin.soeid, Role.SERVICE)
    assert answer(world, admin, rpc, fields, None)[:2] == ROLE_REQUIRED
