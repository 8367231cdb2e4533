"""Traces as the rest of the code sees them; it costs a look into a variable while none is recorded.

What records and sends them is telemetry/otlp.py, imported where a collector is configured.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where a span stands: ids as lower-case hexadecimal digits; sampled: it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """As the W3C header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: object) -> TraceContext | None:
    """Return what a traceparent header says, None where W3C Trace Context calls it invalid."""
    found = _TRACEPARENT.match(text) if isinstance(text, str) and len(text) <= _LONGEST else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # A later version may say more after these four; this one may not.
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, sampled=bool(int(flags, 16) & 1))


class Span(Protocol):
    """A piece of work that is recorded."""

    @property
    def context(self) -> TraceContext:
        """Where it stands."""

    def child(self, name: str, links: "Sequence[Span]" = ()) -> "Span":
        """Begin a part of it that serves those linked too."""

    def end(self, error: BaseException | None = None) -> None:
        """End it; error: its class is recorded, and nothing that it says."""

    def end_call(self, code: str, reason: str) -> None:
        """End the span of a call."""


class Tracer(Protocol):
    """Begins traces."""

    def begin_call(self, method: str, parent: TraceContext | None, correlation_id: str) -> Span:
        """Begin the span of a call. method: its path, /package.Service/Method."""

    def close(self) -> None:
        """Send what is left, if that takes no longer than a moment."""


_active: ContextVar[Span | None] = ContextVar("span", default=None)


def active() -> Span | None:
    """Return the span that the running task or thread works for, if it is recorded."""
    return _active.get()


def activate(span: Span) -> None:
    """Let the running task work for this span until it ends."""
    _active.set(span if span.context.sampled else None)


@contextmanager
def using(span: Span | None) -> Iterator[None]:
    """Let the block work for this span."""
    token = _active.set(span)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Make the block a part of the active span; without one, nothing is done."""
    span = _active.get()
    if span is None:
        yield
        return
    with _ending(span.child(name)):
        yield


@contextmanager
def batch(operation: str, spans: Sequence[Span | None]) -> Iterator[None]:
    """Make the block one span for these calls: a part of the first one's trace, linked to all others.

    A trace of its own would be sampled by itself, and be missing from nearly all traces of a small share.
    """
    recorded = [span for span in spans if span is not None]
    if not recorded:
        yield
        return
    part = recorded[0].child(f"batch {operation}", links=recorded)
    with using(part), _ending(part):
        yield


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        span.end(error)
        raise
    span.end()
