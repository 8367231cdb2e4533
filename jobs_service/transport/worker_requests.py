"""What workers send, made into what the core is asked; everything that a message alone shows is checked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.core import run_parameters
from jobs_service.core.validation import MAX_VIOLATIONS, check_text, check_uuid, refuse_any
from jobs_service.model.caller import Caller
from jobs_service.model.errors import PayloadTooLarge, Violation
from jobs_service.model.job import JsonObject
from jobs_service.model.paths import field_path
from jobs_service.model.work import (
    ClaimRequest,
    Completion,
    Failure,
    FinishRequest,
    Heartbeat,
    HeartbeatRequest,
    Release,
)
from jobs_service.transport import structs
from jobs_service.transport.requests import PROTOBUF_PER_JSON, RUN_TYPES

MAX_WORKER_ID = 128
MAX_CLAIMS = 100
MAX_RUN_TYPES = 10
MAX_LEASES = 1_000
MAX_ITEMS = 1_000
MAX_TOKEN = 128
MAX_ERROR_TYPE = 100
MAX_ERROR_MESSAGE = 1_000
MAX_COMMIT_ID = 128
MAX_PROGRESS_MESSAGE = 500
MAX_DETAILS_BYTES = 4 * 1024
MAX_SUMMARY_BYTES = 1024 * 1024
MAX_SUMMARY_PROTOBUF_BYTES = 2 * 1024 * 1024
LONGEST_WAIT = timedelta(seconds=60)
DEFAULT_LEASE = timedelta(seconds=60)
_LEASE = (timedelta(seconds=5), timedelta(hours=1))
_WAIT = (timedelta(0), LONGEST_WAIT)
_DELAY = (timedelta(0), timedelta(days=30))
# With all digits of its numbers, in proportion to the compact form: as that of run_parameters.
_WRITTEN_OUT = run_parameters.MAX_STORED_BYTES // run_parameters.MAX_BYTES

_TOKEN = re.compile(r"[0-9a-f]{32}\Z")
NOTHING = UUID(int=0)
"""No job's id, and nobody's token."""


@dataclass(slots=True)
class _Faults:
    """What is wrong with a request, gathered while it is converted."""

    found: list[Violation] = field(default_factory=list)

    def add(self, violations: Iterator[Violation] | list[Violation]) -> bool:
        """Note these; whether there were any. No more than are ever told."""
        new = list(islice(violations, MAX_VIOLATIONS))
        self.found.extend(new)
        return bool(new)

    def refuse(self) -> None:
        """Raise InvalidRequest if anything is wrong."""
        refuse_any(iter(self.found))


def claim_request(caller: Caller, request: workers_pb2.ClaimJobsRequest) -> tuple[ClaimRequest, timedelta]:
    """Return what is asked for, and how long to wait for it. Raises InvalidRequest."""
    faults = _Faults()
    if not request.worker_id:
        faults.add([Violation("worker_id", "is required")])
    faults.add(check_text("worker_id", request.worker_id, MAX_WORKER_ID))
    faults.add(_check_run_types(request.run_types))
    if not 0 <= request.max_jobs <= MAX_CLAIMS:
        faults.add([Violation("max_jobs", f"must be between 1 and {MAX_CLAIMS}", MAX_CLAIMS)])
    lease_duration = _duration(request, "lease_duration", _LEASE, faults, default=DEFAULT_LEASE)
    wait = _duration(request, "wait_timeout", _WAIT, faults, default=timedelta(0))
    faults.refuse()
    asked = ClaimRequest(
        caller=caller,
        worker_id=request.worker_id,
        run_types=frozenset(RUN_TYPES[run_type] for run_type in request.run_types),
        max_jobs=request.max_jobs or 1,
        lease_duration=lease_duration,
    )
    return asked, wait


def heartbeat_request(
    caller: Caller, request: workers_pb2.HeartbeatJobsRequest
) -> tuple[HeartbeatRequest, timedelta]:
    """Return the leases to renew, and how long to wait then. Raises InvalidRequest."""
    faults = _Faults()
    lease_duration = _duration(request, "lease_duration", _LEASE, faults, default=DEFAULT_LEASE)
    wait = _duration(request, "wait_timeout", _WAIT, faults, default=timedelta(0))
    leases: tuple[Heartbeat, ...] = ()
    if not faults.add(_check_count("leases", len(request.leases), MAX_LEASES)):
        leases = tuple(
            _heartbeat(f"leases[{index}].", lease, faults) for index, lease in enumerate(request.leases)
        )
    faults.refuse()
    return HeartbeatRequest(caller=caller, leases=leases, lease_duration=lease_duration), wait


def complete_request(caller: Caller, request: workers_pb2.CompleteJobRequest) -> FinishRequest:
    """Return the end of a claim. Raises InvalidRequest, PayloadTooLarge."""
    return _one(caller, request, _completion)


def fail_request(caller: Caller, request: workers_pb2.FailJobRequest) -> FinishRequest:
    """Return the end of a claim. Raises InvalidRequest."""
    return _one(caller, request, _failure)


def release_request(caller: Caller, request: workers_pb2.ReleaseJobRequest) -> FinishRequest:
    """Return the end of a claim. Raises InvalidRequest."""
    return _one(caller, request, _release)


def finish_requests(caller: Caller, request: workers_pb2.FinishJobsRequest) -> list[FinishRequest]:
    """Return the ends of claims, in the order of the items. Raises InvalidRequest, PayloadTooLarge."""
    faults = _Faults()
    faults.add(_check_count("items", len(request.items), MAX_ITEMS))
    faults.refuse()
    finishes = [_item(caller, f"items[{index}]", item, faults) for index, item in enumerate(request.items)]
    faults.refuse()
    return finishes


def _one(caller: Caller, request: Any, outcome: Any) -> FinishRequest:
    faults = _Faults()
    finish = _finish(caller, "", request, outcome, faults)
    faults.refuse()
    return finish


def _item(caller: Caller, path: str, item: workers_pb2.FinishJobsItem, faults: _Faults) -> FinishRequest:
    kind = item.WhichOneof("outcome")
    if kind is None:
        faults.add([Violation(path, "needs one of: complete, fail, release")])
        return FinishRequest(caller, NOTHING, NOTHING, Release())
    return _finish(caller, f"{path}.{kind}.", getattr(item, kind), _OUTCOMES[kind], faults)


def _finish(caller: Caller, path: str, request: Any, outcome: Any, faults: _Faults) -> FinishRequest:
    """path: what stands before the names of the request's fields."""
    return FinishRequest(
        caller,
        _job_id(path, request.job_id, faults),
        _lease_token(path, request.lease_token, faults),
        outcome(path, request, faults),
    )


def _completion(path: str, request: workers_pb2.CompleteJobRequest, faults: _Faults) -> Completion:
    summary, size = None, 0
    if request.HasField("output_summary"):
        summary, size = _summary(f"{path}output_summary", request.output_summary, faults)
    faults.add(check_text(f"{path}output_commit_id", request.output_commit_id, MAX_COMMIT_ID))
    return Completion(summary, size, request.output_commit_id or None)


def _failure(path: str, request: workers_pb2.FailJobRequest, faults: _Faults) -> Failure:
    error = request.error
    if not request.HasField("error"):
        faults.add([Violation(f"{path}error", "is required")])
    faults.add(check_text(f"{path}error.type", error.type, MAX_ERROR_TYPE))
    # The limit is no fault here: the text is cut.
    faults.add(check_text(f"{path}error.message", error.message, len(error.message) * 4))
    delay = None
    if request.HasField("retry_delay"):
        delay = _duration(request, "retry_delay", _DELAY, faults, path=path)
    return Failure(error.type, _cut(error.message), request.non_retryable, delay)


def _release(path: str, request: workers_pb2.ReleaseJobRequest, faults: _Faults) -> Release:
    return Release(_duration(request, "delay", _DELAY, faults, path=path))


_OUTCOMES = {"complete": _completion, "fail": _failure, "release": _release}


def _heartbeat(path: str, lease: workers_pb2.Heartbeat, faults: _Faults) -> Heartbeat:
    progress = None
    if lease.HasField("progress"):
        progress = _progress(f"{path}progress.", lease.progress, faults)
    return Heartbeat(
        _job_id(path, lease.job_id, faults), _lease_token(path, lease.lease_token, faults), progress
    )


def _progress(path: str, progress: jobs_pb2.JobProgress, faults: _Faults) -> JsonObject:
    # NaN is between no numbers.
    if not 0 <= progress.percent <= 100:
        faults.add([Violation(f"{path}percent", "must be between 0 and 100", 100)])
    faults.add(check_text(f"{path}message", progress.message, MAX_PROGRESS_MESSAGE))
    shown: JsonObject = {"percent": progress.percent, "message": progress.message}
    if progress.HasField("details"):
        details, too_large, _ = _json(f"{path}details", progress.details, MAX_DETAILS_BYTES, faults)
        if too_large is not None:
            faults.add([too_large])
        shown["details"] = details
    return shown


def _summary(path: str, summary: Struct, faults: _Faults) -> tuple[JsonObject, int]:
    """The summary and its size with all digits. Raises PayloadTooLarge, whatever else is wrong."""
    if summary.ByteSize() > MAX_SUMMARY_PROTOBUF_BYTES:
        limit = MAX_SUMMARY_PROTOBUF_BYTES
        raise PayloadTooLarge([Violation(path, f"is larger than {limit} bytes as protobuf", limit)])
    value, too_large, size = _json(path, summary, MAX_SUMMARY_BYTES, faults)
    if too_large is not None:
        raise PayloadTooLarge([too_large])
    return value, size


def _json(path: str, struct: Struct, limit: int, faults: _Faults) -> tuple[JsonObject, Violation | None, int]:
    """A Struct by the rules of run_parameters: its value, whether it is too large, its size with all digits.

    Size first: everything else costs time in proportion to it.
    """
    too_large = Violation(path, f"is larger than {limit} bytes as compact JSON", limit)
    if struct.ByteSize() > limit * PROTOBUF_PER_JSON:
        return {}, too_large, 0
    try:
        value = structs.to_json(struct)
    except structs.NoValue as missing:
        faults.add([Violation(field_path(path, missing.path), "is a Value without a kind")])
        return {}, None, 0
    encoded = len(orjson.dumps(value))
    if encoded > limit:
        return {}, too_large, 0
    size = encoded + run_parameters.digits_left_out(value)
    if size > limit * _WRITTEN_OUT:
        most = limit * _WRITTEN_OUT
        too_large = Violation(path, f"is larger than {most} bytes with its numbers written out", most)
        return {}, too_large, 0
    faults.add(run_parameters.check_json(value, root=path))
    return value, None, size


def _check_run_types(run_types: Sequence[int]) -> Iterator[Violation]:
    if not run_types:
        yield Violation("run_types", "is required")
    if len(run_types) > MAX_RUN_TYPES:
        yield Violation("run_types", f"holds more than {MAX_RUN_TYPES} values", MAX_RUN_TYPES)
        return
    for index, run_type in enumerate(run_types):
        if run_type not in RUN_TYPES:
            yield Violation(f"run_types[{index}]", "must be one of the known values")


def _check_count(name: str, count: int, limit: int) -> Iterator[Violation]:
    if not count:
        yield Violation(name, "is required")
    if count > limit:
        yield Violation(name, f"holds more than {limit}", limit)


def _job_id(path: str, text: str, faults: _Faults) -> UUID:
    return NOTHING if faults.add(check_uuid(f"{path}job_id", text)) else UUID(text)


def _lease_token(path: str, text: str, faults: _Faults) -> UUID:
    """What is no token of ours is a token that nothing has."""
    if not text:
        faults.add([Violation(f"{path}lease_token", "is required")])
    elif len(text) > MAX_TOKEN or len(text.encode()) > MAX_TOKEN:
        faults.add([Violation(f"{path}lease_token", f"is longer than {MAX_TOKEN} bytes", MAX_TOKEN)])
    return UUID(hex=text) if _TOKEN.match(text) else NOTHING


def _duration(
    request: Any,
    name: str,
    allowed: tuple[timedelta, timedelta],
    faults: _Faults,
    *,
    default: timedelta = timedelta(0),
    path: str = "",
) -> timedelta:
    """A duration in the range allowed, to the microsecond; default where it is not set."""
    if not request.HasField(name):
        return default
    given: Duration = getattr(request, name)
    lowest, highest = allowed
    seconds = given.seconds + given.nanos / 1_000_000_000
    valid = abs(given.nanos) < 1_000_000_000 and given.seconds * given.nanos >= 0
    if valid and lowest.total_seconds() <= seconds <= highest.total_seconds():
        return timedelta(seconds=given.seconds, microseconds=given.nanos // 1000)
    limit = int(highest.total_seconds())
    between = f"must be between {lowest.total_seconds():g} and {limit} seconds"
    faults.add([Violation(f"{path}{name}", between, limit)])
    return default


def _cut(text: str) -> str:
    """The text, or as much of it as there is room for, in whole characters."""
    return text.encode()[:MAX_ERROR_MESSAGE].decode(errors="ignore") if text else text
