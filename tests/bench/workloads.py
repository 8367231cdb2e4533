"""What is measured: a row of the table for each kind of call."""

import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from grpc_health.v1 import health_pb2

from jobs.v1 import jobs_pb2
from tests.bench import empty_server
from tests.bench.data import Data
from tests.bench.generator import Calls
from tests.bench.http2 import message

EMPTY = "empty RPC"
EMPTY_BYTES = 293
PAGE = 50
IDS = 5_000
_SERVICE = "/jobs.v1.JobsService/"


@dataclass(frozen=True)
class Workload:
    """A row. calls: makes as many different calls as asked for, before the time is taken."""

    name: str
    calls: Callable[[int], Calls]
    empty: bool = False


def workloads(data: Data) -> list[Workload]:
    """Return all rows, the yardstick first."""
    return [
        Workload(EMPTY, _same(empty_server.METHOD, b"x" * EMPTY_BYTES), empty=True),
        Workload("health Check", _same("/grpc.health.v1.Health/Check", _health())),
        Workload("CreateJob", lambda number: _creates(data, number)),
        Workload("GetJob", _reads("GetJob", jobs_pb2.GetJobRequest, data)),
        Workload("GetJobStatus", _reads("GetJobStatus", jobs_pb2.GetJobStatusRequest, data)),
        *(
            Workload(f"ListJobs, {name}", _same(_SERVICE + "ListJobs", _page(), token))
            for name, token in _listers(data)
        ),
        Workload("CancelJob", lambda number: _cancels(data, number)),
    ]


def _listers(data: Data) -> list[tuple[str, str]]:
    callers = data.callers
    return [
        ("admin", callers.admin),
        ("owner", callers.owner),
        ("reader of 1", callers.reader_of_1),
        ("reader of 50", callers.reader_of_50),
        ("reader of 300", callers.reader_of_all),
        ("stranger", callers.stranger),
    ]


def _health() -> bytes:
    return health_pb2.HealthCheckRequest().SerializeToString()


def _page() -> bytes:
    return jobs_pb2.ListJobsRequest(page_size=PAGE).SerializeToString()


def _same(method: str, data: bytes, token: str | None = None) -> Callable[[int], Calls]:
    return lambda _: Calls(method, [message(data)], token)


def _reads(
    rpc: str, request: Callable[..., jobs_pb2.GetJobRequest | jobs_pb2.GetJobStatusRequest], data: Data
) -> Callable[[int], Calls]:
    bodies = [message(request(job_id=job_id).SerializeToString()) for job_id in data.job_ids(IDS)]
    # Each use goes on where the last one stopped, or short rounds would see the same few ids.
    turns = itertools.count()

    def calls(number: int) -> Calls:
        start = next(turns) * 997 % len(bodies)
        return Calls(_SERVICE + rpc, bodies[start:] + bodies[:start], data.callers.writer)

    return calls


def _creates(data: Data, number: int) -> Calls:
    request, placeholder = data.create_request()
    bodies = [message(request.replace(placeholder, str(uuid.uuid4()).encode())) for _ in range(number)]
    return Calls(_SERVICE + "CreateJob", bodies, data.callers.writer, once=True)


def _cancels(data: Data, number: int) -> Calls:
    bodies = _messages(data.pending(number))
    return Calls(_SERVICE + "CancelJob", bodies, data.callers.writer, once=True)


def _messages(job_ids: Iterable[str]) -> Sequence[bytes]:
    requests = (jobs_pb2.CancelJobRequest(job_id=job_id) for job_id in job_ids)
    return [message(request.SerializeToString()) for request in requests]
