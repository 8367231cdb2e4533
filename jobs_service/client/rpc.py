"""The RPCs of the API, each with the types of its request and its answer."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from jobs.v1 import access_pb2, jobs_pb2, workers_pb2

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Answer]):
    """One RPC: its service and name, and its messages."""

    service: str
    name: str
    request: type[Request]
    answer: type[Answer]

    @property
    def path(self) -> str:
        """The name on the wire."""
        return f"/{self.service}/{self.name}"


def _jobs(name: str, request: type[Request], answer: type[Answer]) -> Rpc[Request, Answer]:
    return Rpc("jobs.v1.JobsService", name, request, answer)


def _workers(name: str, request: type[Request], answer: type[Answer]) -> Rpc[Request, Answer]:
    return Rpc("jobs.v1.WorkersService", name, request, answer)


def _access(name: str, request: type[Request], answer: type[Answer]) -> Rpc[Request, Answer]:
    return Rpc("jobs.v1.AccessService", name, request, answer)


CREATE_JOB = _jobs("CreateJob", jobs_pb2.CreateJobRequest, jobs_pb2.CreateJobResponse)
LIST_JOBS = _jobs("ListJobs", jobs_pb2.ListJobsRequest, jobs_pb2.ListJobsResponse)
GET_JOB = _jobs("GetJob", jobs_pb2.GetJobRequest, jobs_pb2.GetJobResponse)
GET_JOB_STATUS = _jobs("GetJobStatus", jobs_pb2.GetJobStatusRequest, jobs_pb2.GetJobStatusResponse)
CANCEL_JOB = _jobs("CancelJob", jobs_pb2.CancelJobRequest, jobs_pb2.CancelJobResponse)
RETRY_JOB = _jobs("RetryJob", jobs_pb2.RetryJobRequest, jobs_pb2.RetryJobResponse)
BATCH_CREATE_JOBS = _jobs(
    "BatchCreateJobs", jobs_pb2.BatchCreateJobsRequest, jobs_pb2.BatchCreateJobsResponse
)
BATCH_GET_JOBS = _jobs("BatchGetJobs", jobs_pb2.BatchGetJobsRequest, jobs_pb2.BatchGetJobsResponse)
BATCH_CANCEL_JOBS = _jobs(
    "BatchCancelJobs", jobs_pb2.BatchCancelJobsRequest, jobs_pb2.BatchCancelJobsResponse
)

CLAIM_JOBS = _workers("ClaimJobs", workers_pb2.ClaimJobsRequest, workers_pb2.ClaimJobsResponse)
HEARTBEAT_JOBS = _workers(
    "HeartbeatJobs", workers_pb2.HeartbeatJobsRequest, workers_pb2.HeartbeatJobsResponse
)
COMPLETE_JOB = _workers("CompleteJob", workers_pb2.CompleteJobRequest, workers_pb2.CompleteJobResponse)
FAIL_JOB = _workers("FailJob", workers_pb2.FailJobRequest, workers_pb2.FailJobResponse)
RELEASE_JOB = _workers("ReleaseJob", workers_pb2.ReleaseJobRequest, workers_pb2.ReleaseJobResponse)
FINISH_JOBS = _workers("FinishJobs", workers_pb2.FinishJobsRequest, workers_pb2.FinishJobsResponse)

PUT_USER = _access("PutUser", access_pb2.PutUserRequest, access_pb2.PutUserResponse)
DELETE_USER = _access("DeleteUser", access_pb2.DeleteUserRequest, access_pb2.DeleteUserResponse)
PUT_DATASET = _access("PutDataset", access_pb2.PutDatasetRequest, access_pb2.PutDatasetResponse)
DELETE_DATASET = _access("DeleteDataset", access_pb2.DeleteDatasetRequest, access_pb2.DeleteDatasetResponse)
SET_DATASET_LIMIT = _access(
    "SetDatasetLimit", access_pb2.SetDatasetLimitRequest, access_pb2.SetDatasetLimitResponse
)
GRANT_PERMISSION = _access(
    "GrantPermission", access_pb2.GrantPermissionRequest, access_pb2.GrantPermissionResponse
)
REVOKE_PERMISSION = _access(
    "RevokePermission", access_pb2.RevokePermissionRequest, access_pb2.RevokePermissionResponse
)
GRANT_RUN_TYPE = _access("GrantRunType", access_pb2.GrantRunTypeRequest, access_pb2.GrantRunTypeResponse)
REVOKE_RUN_TYPE = _access("RevokeRunType", access_pb2.RevokeRunTypeRequest, access_pb2.RevokeRunTypeResponse)
LIST_PERMISSIONS = _access(
    "ListPermissions", access_pb2.ListPermissionsRequest, access_pb2.ListPermissionsResponse
)

ALL: tuple[Rpc[Any, Any], ...] = tuple(value for value in globals().values() if isinstance(value, Rpc))
