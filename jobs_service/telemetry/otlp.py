"""Traces recorded by OpenTelemetry and sent to a collector. Imported where one is configured, only then."""

import logging
import os
import threading
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode

from jobs_service.telemetry.traces import Span, TraceContext

CLOSE_SECONDS = 1.5
# What semantic conventions call the server's own failures; the rest is the caller's affair.
_FAILURES = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

_log = logging.getLogger(__name__)


class OtlpTracer:
    """Records by the standard variables: OTEL_TRACES_SAMPLER, OTEL_BSP_..., OTEL_EXPORTER_OTLP_....

    Spans wait in a queue of a fixed length, and are lost when it is full: calls never wait.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        # It says at every attempt that a collector is away, and for every span that its queue is full.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        name = os.environ.get("OTEL_SERVICE_NAME", "jobs-service")
        self._exporter = _Exporter(endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("jobs_service", version)

    def begin_call(self, method: str, parent: TraceContext | None, correlation_id: str) -> Span:
        """Begin the span of a call."""
        service, _, name = method.removeprefix("/").rpartition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=None if parent is None else trace.set_span_in_context(_remote(parent)),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "jobs.correlation_id": correlation_id,
            },
        )
        return _Span(span, self._tracer)

    def close(self) -> None:
        """Send what is left; what takes longer than CLOSE_SECONDS is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()


def _remote(parent: TraceContext) -> trace.Span:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    context = trace.SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags
    )
    return trace.NonRecordingSpan(context)


class _Span:
    def __init__(self, span: trace.Span, tracer: trace.Tracer) -> None:
        self.span = span
        self._tracer = tracer
        context = span.get_span_context()
        self.context = TraceContext(
            format(context.trace_id, "032x"), format(context.span_id, "016x"), context.trace_flags.sampled
        )

    def child(self, name: str, links: Sequence[Span] = ()) -> Span:
        ours = [link for link in links if isinstance(link, _Span)]
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(self.span),
            kind=SpanKind.CLIENT if name == "postgres" else SpanKind.INTERNAL,
            links=[trace.Link(link.span.get_span_context()) for link in ours],
            attributes={"db.system.name": "postgresql"} if name == "postgres" else {"jobs.rows": len(ours)},
        )
        return _Span(span, self._tracer)

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            self.span.set_attribute("error.type", type(error).__name__)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()

    def end_call(self, code: str, reason: str) -> None:
        self.span.set_attribute("rpc.response.status_code", code)
        if reason:
            self.span.set_attribute("jobs.reason", reason)
        if code in _FAILURES:
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class _Exporter(SpanExporter):
    """Sends spans, and says once when that fails and once when it works again."""

    def __init__(self, endpoint: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._endpoint = endpoint
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send these spans, or lose them."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed != self._failing:
            self._failing = failed
            fields = {"fields": {"endpoint": self._endpoint}}
            if failed:
                _log.warning("traces can't be sent and are lost", extra=fields)
            else:
                _log.info("traces are sent again", extra=fields)
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()
