"""A collector of traces in the test's own process: a real OTLP/gRPC receiver."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.service import wait_until


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent; or, while held, answers nobody."""

    def __init__(self) -> None:
        self.port = 0
        self.resources: list[dict[str, Any]] = []
        self._spans: list[Any] = []
        self._open = threading.Event()
        self._open.set()
        self.asked = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """Take spans."""
        self.asked.set()
        self._open.wait(60)
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self._spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def hold(self) -> None:
        """Answer nobody from now on."""
        self._open.clear()

    def let_go(self) -> None:
        """Answer everybody."""
        self._open.set()

    @property
    def endpoint(self) -> str:
        """As the service takes it."""
        return f"http://127.0.0.1:{self.port}"

    def spans(self, **wanted: Any) -> list[Any]:
        """The spans with these attributes or fields: name, trace_id."""
        found = list(self._spans)
        return [span for span in found if all(_has(span, name, value) for name, value in wanted.items())]

    def wait_for(self, what: str, **wanted: Any) -> Any:
        """Wait for the one span that is so."""
        (span,) = wait_until(lambda: self.spans(**wanted), 20, what)
        return span


def _has(span: Any, name: str, value: Any) -> bool:
    if name == "trace_id":
        return bool(span.trace_id.hex() == value)
    if name == "parent":
        return bool(span.parent_span_id == value)
    return bool(span.name == value)


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as Python values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add: Callable[..., None] = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        collector.let_go()
        server.stop(0).wait(10)
