"""JobsService: each RPC is its request converted, one operation of the core, and the answer converted."""

import asyncio
from typing import Any

from jobs.v1 import jobs_pb2, jobs_pb2_grpc
from jobs_service.model.job import JobView
from jobs_service.model.requests import Cursor, JobFilter, ListRequest, Page
from jobs_service.transport import batches, page_tokens, requests, responses
from jobs_service.transport import call as calls
from jobs_service.transport.auth import Authenticator
from jobs_service.transport.call import Call
from jobs_service.transport.conversion import converted
from jobs_service.transport.operations import Operations


class JobsServicer(jobs_pb2_grpc.JobsServiceServicer):
    """JobsService. Interceptors have authenticated the caller and make statuses of errors."""

    def __init__(self, operations: Operations, authenticator: Authenticator) -> None:
        self._operations = operations
        self._authenticator = authenticator

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Any) -> jobs_pb2.CreateJobResponse:
        """Create a job."""
        call, caller = calls.current_with_caller()
        size = request.ByteSize()
        wanted = await converted(size, lambda: requests.create_request(caller, request, call.traceparent))
        result = await self._operations.create(wanted, call)
        return await converted(size, lambda: responses.create_response(result))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsResponse:
        """Show a page of jobs."""
        call, caller = calls.current_with_caller()
        requests.check_list(request)
        wanted = requests.job_filter(request.filter, owner_id=await self._owner_id(request.filter, call))
        view = requests.view_of(request.view, default=JobView.BASIC)
        asked = ListRequest(
            caller=caller,
            filter=wanted,
            page_size=requests.page_size(request),
            cursor=page_tokens.decode(request.page_token, wanted, view) if request.page_token else None,
            skip=request.skip,
            include_total=request.include_total_size,
            view=view,
        )
        page = await self._operations.list(asked, call)
        return await asyncio.to_thread(_list_response, page, wanted, view)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.GetJobResponse:
        """Show a job."""
        call, caller = calls.current_with_caller()
        wanted, view = requests.get_request_and_view(caller, request)
        job = await self._operations.get(wanted, view, call)
        return await converted(
            job.payload_bytes, lambda: jobs_pb2.GetJobResponse(job=responses.to_message(job, view))
        )

    async def GetJobStatus(
        self, request: jobs_pb2.GetJobStatusRequest, context: Any
    ) -> jobs_pb2.GetJobStatusResponse:
        """Show how far a job is."""
        call, caller = calls.current_with_caller()
        wanted = requests.get_request(caller, request.job_id)
        job = await self._operations.get(wanted, JobView.STATUS, call)
        return await converted(job.payload_bytes, lambda: responses.status_response(job))

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.CancelJobResponse:
        """Cancel a job."""
        call, caller = calls.current_with_caller()
        job = await self._operations.cancel(requests.cancel_request(caller, request), call)
        return await converted(
            job.payload_bytes,
            lambda: jobs_pb2.CancelJobResponse(job=responses.to_message(job, JobView.FULL)),
        )

    async def RetryJob(self, request: jobs_pb2.RetryJobRequest, context: Any) -> jobs_pb2.RetryJobResponse:
        """Make a job PENDING again."""
        call, caller = calls.current_with_caller()
        job = await self._operations.retry(requests.retry_request(caller, request), call)
        return await converted(
            job.payload_bytes,
            lambda: jobs_pb2.RetryJobResponse(job=responses.to_message(job, JobView.FULL)),
        )

    async def BatchCreateJobs(
        self, request: jobs_pb2.BatchCreateJobsRequest, context: Any
    ) -> jobs_pb2.BatchCreateJobsResponse:
        """Create many jobs, or none."""
        call, caller = calls.current_with_caller()
        wanted = await asyncio.to_thread(batches.create_requests, caller, request, call.traceparent)
        results = await self._operations.create_batch(wanted, call)
        return await asyncio.to_thread(batches.create_response, results)

    async def BatchGetJobs(
        self, request: jobs_pb2.BatchGetJobsRequest, context: Any
    ) -> jobs_pb2.BatchGetJobsResponse:
        """Show many jobs."""
        call, caller = calls.current_with_caller()
        wanted = batches.get_request(caller, request)
        found = await self._operations.get_batch(wanted, call)
        return await asyncio.to_thread(batches.get_response, wanted, found)

    async def BatchCancelJobs(
        self, request: jobs_pb2.BatchCancelJobsRequest, context: Any
    ) -> jobs_pb2.BatchCancelJobsResponse:
        """Cancel many jobs."""
        call, caller = calls.current_with_caller()
        batches.check_cancel(request)
        owner_id = await self._owner_id(request.filter, call)
        wanted = batches.cancel_request(caller, request, owner_id=owner_id)
        result = await self._operations.cancel_batch(wanted, call)
        return await asyncio.to_thread(batches.cancel_response, result)

    async def _owner_id(self, wanted: jobs_pb2.JobFilter, call: Call) -> int | None:
        """The id of the owner that a filter names, None where it names none or nobody."""
        if wanted.HasField("user_id"):
            return wanted.user_id
        if wanted.HasField("user_soeid"):
            return await self._authenticator.user_id(wanted.user_soeid.lower(), call)
        return None


def _list_response(page: Page, wanted: JobFilter, view: JobView) -> jobs_pb2.ListJobsResponse:
    """A page of at most responses.MAX_BYTES; the first job always fits, or paging would stand still."""
    response = jobs_pb2.ListJobsResponse(total_size_capped=page.total_capped)
    if page.total is not None:
        response.total_size = page.total
    size = 0
    for job in page.jobs:
        message = responses.to_message(job, view)
        # Some bytes more for the field's tag and length, and the page token.
        size += message.ByteSize() + 8
        if response.jobs and size > responses.MAX_BYTES - 1024:
            break
        response.jobs.append(message)
    shown = len(response.jobs)
    if shown and (page.more or shown < len(page.jobs)):
        last = page.jobs[shown - 1]
        response.next_page_token = page_tokens.encode(Cursor(last.create_time, last.job_id), wanted, view)
    return response
