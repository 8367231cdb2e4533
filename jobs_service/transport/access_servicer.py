"""AccessService: each RPC is its request checked, one operation of the core, and the answer converted."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from jobs.v1 import access_pb2, access_pb2_grpc
from jobs_service.core.access_changes import AccessChanges
from jobs_service.transport import access_requests as requests
from jobs_service.transport import access_responses as responses
from jobs_service.transport import call as calls
from jobs_service.transport.operations import Operations
from jobs_service.transport.requests import RUN_TYPES

T = TypeVar("T")


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Interceptors have authenticated the caller and make statuses of errors."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def PutUser(self, request: access_pb2.PutUserRequest, context: Any) -> access_pb2.PutUserResponse:
        """Add a user, or change the role."""
        soeid, role = request.user_soeid.lower(), request.role
        done = await self._change(request, lambda access: access.put_user(soeid, requests.ROLES[role]))
        return access_pb2.PutUserResponse(user=responses.to_user(done.now), changed=done.changed)

    async def DeleteUser(
        self, request: access_pb2.DeleteUserRequest, context: Any
    ) -> access_pb2.DeleteUserResponse:
        """Delete a user."""
        soeid = request.user_soeid.lower()
        changed = await self._change(request, lambda access: access.delete_user(soeid))
        return access_pb2.DeleteUserResponse(changed=changed)

    async def PutDataset(
        self, request: access_pb2.PutDatasetRequest, context: Any
    ) -> access_pb2.PutDatasetResponse:
        """Add a data set, or change its name."""
        done = await self._change(
            request, lambda access: access.put_dataset(request.dataset_id, request.name)
        )
        return access_pb2.PutDatasetResponse(dataset=responses.to_dataset(done.now), changed=done.changed)

    async def DeleteDataset(
        self, request: access_pb2.DeleteDatasetRequest, context: Any
    ) -> access_pb2.DeleteDatasetResponse:
        """Delete a data set."""
        changed = await self._change(request, lambda access: access.delete_dataset(request.dataset_id))
        return access_pb2.DeleteDatasetResponse(changed=changed)

    async def SetDatasetLimit(
        self, request: access_pb2.SetDatasetLimitRequest, context: Any
    ) -> access_pb2.SetDatasetLimitResponse:
        """Limit the jobs of a data set that run at once, or not."""
        most = request.max_running or None
        done = await self._change(request, lambda access: access.set_limit(request.dataset_id, most))
        return access_pb2.SetDatasetLimitResponse(
            dataset=responses.to_dataset(done.now), changed=done.changed
        )

    async def GrantPermission(
        self, request: access_pb2.GrantPermissionRequest, context: Any
    ) -> access_pb2.GrantPermissionResponse:
        """Set a user's level on a data set."""
        soeid, level = request.user_soeid.lower(), request.level
        done = await self._change(
            request, lambda access: access.grant(soeid, request.dataset_id, requests.LEVELS[level])
        )
        return access_pb2.GrantPermissionResponse(
            permission=responses.to_permission(done.now), changed=done.changed
        )

    async def RevokePermission(
        self, request: access_pb2.RevokePermissionRequest, context: Any
    ) -> access_pb2.RevokePermissionResponse:
        """Take a user's level on a data set away."""
        soeid = request.user_soeid.lower()
        changed = await self._change(request, lambda access: access.revoke(soeid, request.dataset_id))
        return access_pb2.RevokePermissionResponse(changed=changed)

    async def GrantRunType(
        self, request: access_pb2.GrantRunTypeRequest, context: Any
    ) -> access_pb2.GrantRunTypeResponse:
        """Let a program work on a run type."""
        soeid, run_type = request.user_soeid.lower(), request.run_type
        done = await self._change(request, lambda access: access.grant_run_type(soeid, RUN_TYPES[run_type]))
        return access_pb2.GrantRunTypeResponse(user=responses.to_user(done.now), changed=done.changed)

    async def RevokeRunType(
        self, request: access_pb2.RevokeRunTypeRequest, context: Any
    ) -> access_pb2.RevokeRunTypeResponse:
        """Keep a program from work on a run type."""
        soeid, run_type = request.user_soeid.lower(), request.run_type
        done = await self._change(request, lambda access: access.revoke_run_type(soeid, RUN_TYPES[run_type]))
        return access_pb2.RevokeRunTypeResponse(user=responses.to_user(done.now), changed=done.changed)

    async def ListPermissions(
        self, request: access_pb2.ListPermissionsRequest, context: Any
    ) -> access_pb2.ListPermissionsResponse:
        """Show a page of who may do what."""
        call, caller = calls.current_with_caller()
        asked = requests.permissions_request(request)
        page = await self._operations.list_permissions(asked, caller, call)
        return await asyncio.to_thread(responses.permissions_response, page, asked)

    async def _change(self, request: Any, change: Callable[[AccessChanges], T]) -> T:
        call, caller = calls.current_with_caller()
        requests.check(request)
        return await self._operations.change_access(change, caller, call)
