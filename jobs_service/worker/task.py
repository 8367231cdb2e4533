"""What a handler sees of its job: the parameters, where to report progress, and whether to stop."""

import enum
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format

from jobs.v1 import jobs_pb2
from jobs_service.client.structs import to_plain, to_struct

MAX_MESSAGE_BYTES = 500
MAX_DETAILS_BYTES = 4 * 1024


class Cancelled(Exception):
    """The handler is to stop. Raised by Task.check and Task.sleep; let it pass."""

    def __init__(self, reason: "StopReason") -> None:
        super().__init__(reason.value)
        self.reason = reason


class StopReason(enum.Enum):
    """Why a handler is to stop. The value is for people."""

    CANCELLED = "the job was cancelled"
    LOST = "the job is not this worker's any more"
    TIMED_OUT = "the handler has taken longer than its timeout"
    STOPPING = "the worker is stopping"

    @property
    def is_final(self) -> bool:
        """Whether no outcome of this attempt is taken any more."""
        return self in {StopReason.CANCELLED, StopReason.LOST}


class CancelToken:
    """Says whether to stop, to any thread. Set once; the first reason stands."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._reason: StopReason | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def reason(self) -> StopReason | None:
        """Why to stop; None: go on."""
        return self._reason

    def cancel(self, reason: StopReason) -> bool:
        """Tell to stop, and call the callbacks; whether this was the first time."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
        self._event.set()
        for callback in callbacks:
            callback()
        return True

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call it when it is time to stop, on the thread that says so; now, if it is."""
        with self._lock:
            if self._reason is None:
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is time to stop, so many seconds at most; whether it is."""
        return self._event.wait(seconds)


class Task:
    """One attempt at one job, for its handler. Every method may be called from any thread.

    job: in view FULL, as it was claimed. parameters: its run_parameters as plain values, whole numbers as
    int. attempt: 1 or more. traceparent: the W3C trace context that the job was created in, or "".
    """

    def __init__(
        self,
        job: jobs_pb2.Job,
        attempt: int,
        traceparent: str,
        token: CancelToken,
        report: Callable[[jobs_pb2.JobProgress], None],
    ) -> None:
        self.job = job
        self.attempt = attempt
        self.traceparent = traceparent
        self.token = token
        self.parameters: dict[str, Any] = to_plain(job.run_parameters)
        self._report = report

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def dataset_id(self) -> int:
        """The data set that the job is about."""
        return self.job.dataset_id

    @property
    def cancelled(self) -> bool:
        """Whether to stop."""
        return self.token.reason is not None

    def check(self) -> None:
        """Raise Cancelled if it is time to stop. Call it often: a thread can't be stopped from outside."""
        if self.token.reason is not None:
            raise Cancelled(self.token.reason)

    def sleep(self, seconds: float) -> None:
        """Wait so long; raises Cancelled as soon as it is time to stop. In a coroutine use asyncio.sleep."""
        self.token.wait(seconds)
        self.check()

    def progress(self, percent: float, message: str = "", details: Mapping[str, Any] | None = None) -> None:
        """Report how far the job is; returns at once.

        percent: 0 to 100. message: cut after 500 bytes of UTF-8. details: at most 4 KiB as compact JSON. They
        go out at most once a second, the newest alone. Raises ValueError for what the service would refuse.
        """
        self._report(_progress(percent, message, details))


def _progress(percent: float, message: str, details: Mapping[str, Any] | None) -> jobs_pb2.JobProgress:
    if not math.isfinite(percent) or not 0 <= percent <= 100:
        raise ValueError(f"percent: {percent!r} is not between 0 and 100")
    progress = jobs_pb2.JobProgress(percent=percent, message=cut(message, MAX_MESSAGE_BYTES))
    if details is not None:
        to_struct(details, progress.details)
        size = len(json_format.MessageToJson(progress.details, indent=None, ensure_ascii=False).encode())
        if size > MAX_DETAILS_BYTES:
            raise ValueError(f"details: {size} bytes as JSON are more than {MAX_DETAILS_BYTES}")
    return progress


def cut(text: str, limit: int) -> str:
    """Return the text without what no job may hold, and no more of it than so many bytes of UTF-8."""
    clean = text.replace("\0", "").encode(errors="replace")
    return clean[:limit].decode(errors="ignore")
