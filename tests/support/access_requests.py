"""A good request of each RPC of AccessService, its name as a path, and what it could change."""

from typing import Any

from google.protobuf.message import Message

from jobs.v1 import access_pb2
from tests.support.world import World

ACCESS = access_pb2.DESCRIPTOR.services_by_name["AccessService"]
RPCS = {method.name: method for method in ACCESS.methods}


def path(rpc: str) -> str:
    """What the RPC is called by."""
    return f"/{ACCESS.full_name}/{rpc}"


def request(rpc: str, **fields: Any) -> Message:
    """A request with these fields."""
    message: Message = getattr(access_pb2, f"{rpc}Request")(**fields)
    return message


def good(rpc: str, soeid: str, dataset_id: int) -> dict[str, Any]:
    """Fields, all that there are, of a request about this user and this data set that would be accepted."""
    values: dict[str, Any] = {
        "user_soeid": soeid,
        "dataset_id": dataset_id,
        "role": access_pb2.ROLE_USER,
        "level": access_pb2.PERMISSION_LEVEL_READ,
        "run_type": 1,
        "name": "a data set",
        "max_running": 7,
        "page_size": 5,
        "page_token": "",
    }
    return {field.name: values[field.name] for field in RPCS[rpc].input_type.fields}


def access_tables(world: World) -> list[Any]:
    """All that AccessService could have changed."""
    rows = world.sql.execute(
        """SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM datasets),
                  (SELECT count(*) FROM dataset_permissions), (SELECT count(*) FROM run_type_grants),
                  (SELECT count(*) FROM dataset_limits), (SELECT count(*) FROM access_events),
                  (SELECT count(*) FROM deleted_datasets), (SELECT sum(hashtext(u::text)) FROM users u),
                  (SELECT sum(hashtext(d::text)) FROM datasets d)"""
    )
    return rows.fetchall()
