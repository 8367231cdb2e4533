"""What is known of the call being served: filled by the interceptors, read by servicers and logs."""

import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from jobs_service.model.caller import Caller
from jobs_service.model.errors import CredentialsMissing, DeadlineExceeded


@dataclass(slots=True)
class Call:
    """One call. deadline: on the monotonic clock, in seconds; None: the caller set none.

    code and reason are what the caller is told, detail is for the log alone.
    """

    method: str
    correlation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    deadline: float | None = None
    caller: Caller | None = None
    code: str = "OK"
    reason: str = ""
    detail: str = ""
    traceparent: str | None = None
    """The W3C trace context of this call's span, or without tracing that which the caller sent."""
    if_undelivered: Callable[[], None] | None = None
    """What is to be done if the answer does not go out after all; see interceptors.admission."""

    def seconds_left(self, at_most: float) -> float:
        """Return the seconds until the deadline, or at_most. Raises DeadlineExceeded."""
        if self.deadline is None:
            return at_most
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded
        return min(left, at_most)


_current: ContextVar[Call] = ContextVar("call")


def begin(call: Call) -> None:
    """Make this the call of the running task."""
    _current.set(call)


def current() -> Call:
    """Return the call of the running task."""
    return _current.get()


def current_with_caller() -> tuple[Call, Caller]:
    """Return it and who calls. Raises CredentialsMissing."""
    call = current()
    if call.caller is None:
        raise CredentialsMissing
    return call, call.caller


def undelivered() -> None:
    """Note that the answer of the running task's call, if it has one, did not go out."""
    call = _current.get(None)
    if call is not None and call.if_undelivered is not None:
        call.if_undelivered()
