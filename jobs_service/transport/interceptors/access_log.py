"""The end of each call, seen at one place: a line in the log, metrics, and the span of its trace."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.telemetry import traces
from jobs_service.telemetry.metrics import CallMetrics, Metrics
from jobs_service.telemetry.traces import Span, Tracer, parse_traceparent
from jobs_service.transport import call as calls
from jobs_service.transport.call import Call
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, CallInterceptor, Context

CORRELATION_ID = "x-correlation-id"
TRACEPARENT = "traceparent"

_log = logging.getLogger("jobs_service.access")
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")


class AccessLog(CallInterceptor):
    """Begins each call with its correlation id, taken from the metadata or made, and tells its end."""

    def __init__(self, metrics: CallMetrics | None = None, tracer: Tracer | None = None) -> None:
        super().__init__()
        self._metrics = metrics or Metrics().calls
        self._tracer = tracer

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Count, time and log the call when it has ended, however it ends."""
        call = Call(method)
        span = self._begin(call, context)
        context.set_trailing_metadata(((CORRELATION_ID, call.correlation_id),))
        self._metrics.begun(method)
        began = time.perf_counter()
        try:
            # In front for those who log headers, in the trailers for refusals that have nothing else.
            await context.send_initial_metadata(((CORRELATION_ID, call.correlation_id),))
            yield
        except asyncio.CancelledError:
            # Whoever waited is gone; a deadline that passed on the client's side looks the same.
            call.code = "CANCELLED"
            raise
        finally:
            seconds = time.perf_counter() - began
            self._metrics.ended(method, call.code, call.reason, seconds)
            if span is not None:
                span.end_call(call.code, call.reason)
            _write(call, context, seconds * 1000)

    def _begin(self, call: Call, context: Context) -> Span | None:
        """Take what the metadata says of the call, and begin its span where traces are recorded."""
        given: dict[str, list[str | bytes]] = {CORRELATION_ID: [], TRACEPARENT: []}
        for key, value in context.invocation_metadata() or ():
            if key in given:
                given[key].append(value)
        correlation_id = _only(given[CORRELATION_ID])
        # What is no plain id would be a way to write into our logs.
        if correlation_id and _PLAIN_ID.match(correlation_id):
            call.correlation_id = correlation_id
        calls.begin(call)
        parent = parse_traceparent(_only(given[TRACEPARENT]))
        if self._tracer is None or call.method.startswith((HEALTH, REFLECTION)):
            call.traceparent = parent.traceparent if parent else None
            return None
        span = self._tracer.begin_call(call.method, parent, call.correlation_id)
        call.traceparent = span.context.traceparent
        traces.activate(span)
        return span


def _only(values: list[str | bytes]) -> str | None:
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def _write(call: Call, context: Context, milliseconds: float) -> None:
    routine = call.method.startswith((HEALTH, REFLECTION)) and call.code in {"OK", "CANCELLED"}
    level = logging.DEBUG if routine else logging.INFO
    if not _log.isEnabledFor(level):
        return
    on_behalf_of = call.caller.on_behalf_of if call.caller else None
    fields = {
        "method": call.method,
        "caller": call.caller.soeid if call.caller else None,
        "on_behalf_of": on_behalf_of.soeid if on_behalf_of else None,
        "code": call.code,
        "reason": call.reason or None,
        "duration_ms": round(milliseconds, 3),
        "correlation_id": call.correlation_id,
        "peer": context.peer(),
    }
    if call.detail:
        fields["detail"] = call.detail
    if call.traceparent:
        fields["trace_id"] = call.traceparent.split("-")[1]
    _log.log(level, "call", extra={"fields": fields})
