"""Users, data sets and permissions as they go over the wire."""

from typing import Any

from jobs.v1 import access_pb2
from jobs_service.model.access import (
    Dataset,
    Permission,
    PermissionPlace,
    PermissionsPage,
    PermissionsRequest,
    User,
)
from jobs_service.model.caller import Level, Role
from jobs_service.transport import page_tokens
from jobs_service.transport.access_requests import LEVELS, ROLES
from jobs_service.transport.responses import run_type_number

_ROLE_NUMBERS: dict[Role, Any] = {role: number for number, role in ROLES.items()}
_LEVEL_NUMBERS: dict[Level, Any] = {level: number for number, level in LEVELS.items()}


def to_user(user: User) -> access_pb2.User:
    """Return a user."""
    return access_pb2.User(
        user_id=user.user_id,
        user_soeid=user.soeid,
        role=_ROLE_NUMBERS[user.role],
        run_types=[run_type_number(run_type) for run_type in user.run_types],
    )


def to_dataset(dataset: Dataset) -> access_pb2.Dataset:
    """Return a data set."""
    return access_pb2.Dataset(
        dataset_id=dataset.dataset_id, name=dataset.name, max_running=dataset.max_running
    )


def to_permission(permission: Permission) -> access_pb2.Permission:
    """Return a permission."""
    return access_pb2.Permission(
        user_id=permission.user_id,
        user_soeid=permission.soeid,
        dataset_id=permission.dataset_id,
        level=_LEVEL_NUMBERS[permission.level],
    )


def permissions_response(
    page: PermissionsPage, asked: PermissionsRequest
) -> access_pb2.ListPermissionsResponse:
    """Return a page, with the token of the next one where there is one."""
    response = access_pb2.ListPermissionsResponse(
        permissions=[to_permission(permission) for permission in page.permissions],
        user=None if page.user is None else to_user(page.user),
        dataset=None if page.dataset is None else to_dataset(page.dataset),
    )
    if page.more:
        last = page.permissions[-1]
        place = PermissionPlace(last.user_id, last.dataset_id)
        response.next_page_token = page_tokens.encode_permission(place, asked.soeid, asked.dataset_id)
    return response
