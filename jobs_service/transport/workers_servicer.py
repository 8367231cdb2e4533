"""WorkersService: each RPC is its request converted, one operation of the core, and the answer converted."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from jobs.v1 import workers_pb2, workers_pb2_grpc
from jobs_service.model.caller import Caller
from jobs_service.model.errors import (
    CallerUnknown,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    JobsError,
    Overloaded,
    RoleRequired,
    ShuttingDown,
    UserNotFound,
)
from jobs_service.model.work import ClaimRequest, ClaimResult, FinishRequest, FinishResult
from jobs_service.transport import call as calls
from jobs_service.transport import worker_requests as requests
from jobs_service.transport import worker_responses as responses
from jobs_service.transport.call import Call
from jobs_service.transport.conversion import LARGE_BYTES, converted
from jobs_service.transport.worker_operations import WorkerOperations

T = TypeVar("T")

_LARGE_JOBS = 20
"""So many jobs take as long to convert as LARGE_BYTES."""
_MOST_WAITING_BYTES = 128 * 1024
"""A heartbeat that is larger does not wait: it would hold its memory all the while. 1,000 leases are not."""

_OF_THE_CALL = (
    CallerUnknown,
    RoleRequired,
    UserNotFound,
    Overloaded,
    ShuttingDown,
    DatabaseUnavailable,
    DeadlineExceeded,
)

_log = logging.getLogger(__name__)


class WorkersServicer(workers_pb2_grpc.WorkersServiceServicer):
    """WorkersService. Interceptors have authenticated the caller and make statuses of errors."""

    def __init__(self, operations: WorkerOperations) -> None:
        self._operations = operations

    async def ClaimJobs(
        self, request: workers_pb2.ClaimJobsRequest, context: Any
    ) -> workers_pb2.ClaimJobsResponse:
        """Give jobs to a worker."""
        call, caller = calls.current_with_caller()
        asked, wait = requests.claim_request(caller, request)
        result = await self._operations.claim(asked, wait, call)
        # From here to the last byte of the answer: who does not get it has none of the jobs.
        call.if_undelivered = partial(self._operations.give_back, asked, result.claims)
        size = sum(claim.job.payload_bytes + LARGE_BYTES // _LARGE_JOBS for claim in result.claims)
        response, surplus = await converted(size, partial(responses.claim_response, result))
        self._keep_back(call, asked, result, len(result.claims) - len(surplus))
        return response

    def _keep_back(self, call: Call, asked: ClaimRequest, result: ClaimResult, shown: int) -> None:
        """Give back what had no room in the answer."""
        call.if_undelivered = partial(self._operations.give_back, asked, result.claims[:shown])
        self._operations.give_back(asked, result.claims[shown:])

    async def HeartbeatJobs(
        self, request: workers_pb2.HeartbeatJobsRequest, context: Any
    ) -> workers_pb2.HeartbeatJobsResponse:
        """Renew leases."""
        call, caller = calls.current_with_caller()
        size = request.ByteSize()
        asked, wait = await converted(size, partial(requests.heartbeat_request, caller, request))
        if size > _MOST_WAITING_BYTES:
            wait *= 0
        results = await self._operations.heartbeat(asked, wait, call)
        return await converted(size, partial(responses.heartbeat_response, asked, results))

    async def CompleteJob(
        self, request: workers_pb2.CompleteJobRequest, context: Any
    ) -> workers_pb2.CompleteJobResponse:
        """Note that a job is done."""
        return await self._finish(context, request, requests.complete_request, responses.complete_response)

    async def FailJob(self, request: workers_pb2.FailJobRequest, context: Any) -> workers_pb2.FailJobResponse:
        """Note that an attempt failed."""
        return await self._finish(context, request, requests.fail_request, responses.fail_response)

    async def ReleaseJob(
        self, request: workers_pb2.ReleaseJobRequest, context: Any
    ) -> workers_pb2.ReleaseJobResponse:
        """Take a job back."""
        return await self._finish(context, request, requests.release_request, responses.release_response)

    async def FinishJobs(
        self, request: workers_pb2.FinishJobsRequest, context: Any
    ) -> workers_pb2.FinishJobsResponse:
        """Note how many claims ended."""
        call, caller = calls.current_with_caller()
        finishes = await converted(request.ByteSize(), partial(requests.finish_requests, caller, request))
        outcomes = await self._operations.finish_all(finishes, call)
        results = [_result(outcome, call) for outcome in outcomes]
        _raise_common(results)
        return await converted(
            len(results) * LARGE_BYTES // _LARGE_JOBS, partial(responses.finish_response, finishes, results)
        )

    async def _finish(
        self,
        context: Any,
        request: Any,
        convert: Callable[[Caller, Any], FinishRequest],
        answer: Callable[[FinishResult], T],
    ) -> T:
        call, caller = calls.current_with_caller()
        finish = await converted(request.ByteSize(), partial(convert, caller, request))
        result = await self._operations.finish(finish, call)
        return await converted(result.job.payload_bytes, partial(answer, result))


def _result(outcome: FinishResult | Exception, call: Call) -> FinishResult | JobsError:
    """What nobody expected of one item is its error, and in the log."""
    if isinstance(outcome, FinishResult | JobsError):
        return outcome
    _log.error(
        "the end of a claim failed unexpectedly",
        exc_info=outcome,
        extra={"fields": {"correlation_id": call.correlation_id}},
    )
    return InternalError(correlation_id=call.correlation_id)


def _raise_common(results: Sequence[FinishResult | JobsError]) -> None:
    """What is wrong with the call and not with an item is raised: each item has it then."""
    first = results[0]
    if isinstance(first, _OF_THE_CALL) and all(type(result) is type(first) for result in results):
        raise first
