"""When, how often and after what a job runs: these fields of a request, checked and made into values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from jobs_service.model.errors import Violation
from jobs_service.model.retry import DEFAULT_MAX_ATTEMPTS, RetryPolicy

MAX_ATTEMPTS = 100
MAX_DEPENDENCIES = 100
MAX_START_DELAY = timedelta(days=30)
RUN_TIMEOUTS = timedelta(seconds=1), timedelta(days=30)
MAX_BACKOFF = timedelta(days=1)
MAX_BACKOFF_MULTIPLIER = 10
CANCEL, KEEP_WAITING = "CANCEL", "KEEP_WAITING"

_NONE = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDraft:
    """How long to wait between attempts, as it came. None: not given."""

    initial: timedelta | None = None
    longest: timedelta | None = None
    multiplier: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDraft:
    """When, how often and after what a job shall run, as it came: nothing checked. None: not given.

    on_dependency_failure: CANCEL or KEEP_WAITING, None for any other word, empty where not given.
    place: of the job in its batch, None for a job asked for alone; depends_on_indexes: places before it.
    """

    max_attempts: int | None = None
    start_delay: timedelta | None = None
    run_timeout: timedelta | None = None
    retry: RetryDraft | None = None
    depends_on: Sequence[str] = ()
    depends_on_indexes: Sequence[int] = ()
    on_dependency_failure: str | None = ""
    place: int | None = None

    def given(self) -> dict[str, Any]:
        """The fields that are set, as JSON; ids in lower case and in order."""
        retry = self.retry or RetryDraft()
        fields = {
            "max_attempts": self.max_attempts,
            "start_delay": _seconds(self.start_delay),
            "run_timeout": _seconds(self.run_timeout),
            "initial_backoff": _seconds(retry.initial),
            "max_backoff": _seconds(retry.longest),
            "backoff_multiplier": retry.multiplier,
            "depends_on_job_ids": sorted(text.lower() for text in self.depends_on),
            "depends_on_indexes": sorted(self.depends_on_indexes),
            "on_dependency_failure": self.on_dependency_failure,
        }
        return {name: value for name, value in fields.items() if value}


def _seconds(span: timedelta | None) -> str | None:
    """A text, so that zero is something that was set."""
    return None if span is None else str(span.total_seconds())


def schedule_of(draft: ScheduleDraft) -> dict[str, Any]:
    """Return the fields of NewJob that a checked draft sets."""
    return {
        "max_attempts": DEFAULT_MAX_ATTEMPTS if draft.max_attempts is None else draft.max_attempts,
        "start_delay": draft.start_delay or _NONE,
        "run_timeout": draft.run_timeout,
        "retry_policy": _policy(draft.retry),
        "depends_on": tuple(UUID(text) for text in draft.depends_on),
        "keep_waiting": draft.on_dependency_failure == KEEP_WAITING,
    }


def _policy(draft: RetryDraft | None) -> RetryPolicy | None:
    if draft is None or draft == RetryDraft():
        return None
    usual = RetryPolicy()
    initial = usual.initial if draft.initial is None else draft.initial
    return RetryPolicy(
        initial=initial,
        longest=max(usual.longest, initial) if draft.longest is None else draft.longest,
        multiplier=usual.multiplier if draft.multiplier is None else draft.multiplier,
    )


def check_schedule(draft: ScheduleDraft) -> Iterator[Violation]:
    """Yield what is wrong with these fields, the ids of other jobs aside."""
    if draft.max_attempts is not None and not 1 <= draft.max_attempts <= MAX_ATTEMPTS:
        yield Violation("max_attempts", f"must be between 1 and {MAX_ATTEMPTS}", MAX_ATTEMPTS)
    yield from check_span("start_delay", draft.start_delay, _NONE, MAX_START_DELAY)
    yield from check_span("run_timeout", draft.run_timeout, *RUN_TIMEOUTS)
    yield from _check_retry(draft.retry or RetryDraft())
    yield from _check_indexes(draft)
    if draft.on_dependency_failure is None:
        yield Violation("on_dependency_failure", "must be one of the known values")


def check_span(
    name: str, span: timedelta | None, shortest: timedelta, longest: timedelta
) -> Iterator[Violation]:
    """Yield what is wrong with a span of time that may be left out."""
    if span is not None and not shortest <= span <= longest:
        least, most = f"{shortest.total_seconds():g}", int(longest.total_seconds())
        yield Violation(name, f"must be between {least} and {most} seconds", most)


def _check_retry(retry: RetryDraft) -> Iterator[Violation]:
    yield from check_span("retry_policy.initial_backoff", retry.initial, _NONE, MAX_BACKOFF)
    initial = RetryPolicy().initial if retry.initial is None else retry.initial
    # What is wrong with the first is said of the first alone.
    least = initial if _NONE <= initial <= MAX_BACKOFF else _NONE
    yield from check_span("retry_policy.max_backoff", retry.longest, least, MAX_BACKOFF)
    # NaN is not between anything.
    if retry.multiplier is not None and not 1 <= retry.multiplier <= MAX_BACKOFF_MULTIPLIER:
        limit = MAX_BACKOFF_MULTIPLIER
        yield Violation("retry_policy.backoff_multiplier", f"must be between 1 and {limit}", limit)


def _check_indexes(draft: ScheduleDraft) -> Iterator[Violation]:
    name, indexes = "depends_on_indexes", draft.depends_on_indexes
    if not indexes:
        return
    if draft.place is None:
        yield Violation(name, "is for a batch alone")
        return
    if len(draft.depends_on) + len(indexes) > MAX_DEPENDENCIES:
        description = f"holds, with depends_on_job_ids, more than {MAX_DEPENDENCIES} jobs"
        yield Violation(name, description, MAX_DEPENDENCIES)
        return
    for place, index in enumerate(indexes):
        if not 0 <= index < draft.place:
            yield Violation(f"{name}[{place}]", "must be the place of an earlier entry")
        elif index in indexes[:place]:
            yield Violation(f"{name}[{place}]", "is there twice")
