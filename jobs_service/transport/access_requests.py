"""Requests of AccessService as they come over the wire, checked."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from jobs.v1 import access_pb2
from jobs_service.core.validation import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    check_dataset_name,
    check_id,
    refuse_any,
)
from jobs_service.model.access import PermissionsRequest
from jobs_service.model.caller import Level, Role, normalized_soeid
from jobs_service.model.errors import Violation
from jobs_service.transport import page_tokens
from jobs_service.transport.requests import RUN_TYPES

ROLES: dict[int, Role] = {access_pb2.Role.Value(f"ROLE_{role.name}"): role for role in Role}
LEVELS: dict[int, Level] = {
    access_pb2.PermissionLevel.Value(f"PERMISSION_LEVEL_{level.name}"): level for level in Level
}
_WORDS: dict[str, Mapping[int, object]] = {"role": ROLES, "level": LEVELS, "run_type": RUN_TYPES}


def check(request: Any) -> None:
    """Check everything that a change shows by itself. Raises InvalidRequest.

    A field of one name means the same in every request.
    """
    refuse_any(chain.from_iterable(_check_field(field.name, request) for field in request.DESCRIPTOR.fields))


def _check_field(name: str, request: Any) -> Iterator[Violation]:
    value = getattr(request, name)
    if name == "user_soeid":
        yield from _check_soeid(value)
    elif name == "dataset_id":
        yield from check_id(name, value)
    elif name == "name":
        yield from check_dataset_name(value)
    elif name == "max_running":
        if value < 0:
            yield Violation(name, "must not be negative")
    elif value not in _WORDS[name]:
        yield Violation(name, "is required and must be one of the known values")


def _check_soeid(text: str) -> Iterator[Violation]:
    if normalized_soeid(text) is None:
        yield Violation("user_soeid", "must be a SOEID: two letters and five digits")


def permissions_request(request: access_pb2.ListPermissionsRequest) -> PermissionsRequest:
    """Return which page is asked for. Raises InvalidRequest, InvalidPageToken."""
    refuse_any(_check_list(request))
    soeid = request.user_soeid.lower() if request.HasField("user_soeid") else None
    dataset_id = request.dataset_id if request.HasField("dataset_id") else None
    token = request.page_token
    return PermissionsRequest(
        soeid=soeid,
        dataset_id=dataset_id,
        page_size=min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
        after=page_tokens.decode_permission(token, soeid, dataset_id) if token else None,
    )


def _check_list(request: access_pb2.ListPermissionsRequest) -> Iterator[Violation]:
    if request.HasField("user_soeid"):
        yield from _check_soeid(request.user_soeid)
    if request.HasField("dataset_id"):
        yield from check_id("dataset_id", request.dataset_id)
    if request.page_size < 0:
        yield Violation("page_size", "must not be negative")
