"""What a request must be by itself, before anybody looks into the database."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from uuid import UUID

import orjson

from jobs_service.core import run_parameters
from jobs_service.core.scheduling import MAX_DEPENDENCIES, ScheduleDraft, check_schedule, schedule_of
from jobs_service.model.errors import InvalidRequest, PayloadTooLarge, Violation
from jobs_service.model.job import JsonObject, NewJob, RunType

MAX_VIOLATIONS = 20
MAX_DESCRIPTION = 1_000
MAX_EXTERNAL_ID = 128
MAX_DATASET_NAME = 500
MAX_CANCEL_REASON = 500
MAX_PRIORITY = 100
MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 100
MAX_SKIP = 10_000
MAX_FILTER_WORDS = 10
MAX_BATCH = 1_000

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{64}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDraft:
    """A job asked for, as it came: nothing checked. Empty strings are not given.

    run_type None: none of the words. run_parameters None: not given.
    """

    dataset_id: int
    run_type: RunType | None
    run_parameters: JsonObject | None
    source_commit_id: str = ""
    description: str = ""
    external_id: str = ""
    priority: int = 0
    request_id: str = ""
    validate_only: bool = False
    schedule: ScheduleDraft = field(default_factory=ScheduleDraft)
    violations: list[Violation] = field(default_factory=list)
    """What is wrong with run_parameters so that they could not even be converted."""


def checked_job(draft: JobDraft, *, owner_id: int | None) -> NewJob:
    """Return the job asked for. Raises InvalidRequest with all that is wrong, PayloadTooLarge.

    owner_id None: the owner is not known (yet), so that user_id in the parameters is not compared.
    """
    # The size first: everything else about the parameters costs time in proportion to it.
    parameters = draft.run_parameters or {}
    encoded = orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)
    if len(encoded) > run_parameters.MAX_BYTES:
        raise PayloadTooLarge([parameters_too_large()])
    stored_bytes = len(encoded) + run_parameters.digits_left_out(parameters)
    if stored_bytes > run_parameters.MAX_STORED_BYTES:
        raise PayloadTooLarge([_parameters_too_large_written_out()])
    refuse_any(chain(draft.violations, _check_draft(draft, owner_id)))
    assert draft.run_type is not None  # noqa: S101 - refused above; for the type checker
    return NewJob(
        dataset_id=draft.dataset_id,
        run_type=draft.run_type,
        run_parameters=parameters,
        payload_bytes=stored_bytes,
        request_hash=_request_hash(draft, encoded),
        source_commit_id=draft.source_commit_id.lower() or None,
        description=draft.description or None,
        external_id=draft.external_id or None,
        priority=draft.priority,
        request_id=UUID(draft.request_id) if draft.request_id else None,
        validate_only=draft.validate_only,
        **schedule_of(draft.schedule),
    )


def parameters_too_large() -> Violation:
    """What is said of run_parameters over their limit."""
    limit = run_parameters.MAX_BYTES
    return Violation(run_parameters.ROOT, f"is larger than {limit} bytes as compact JSON", limit)


def _parameters_too_large_written_out() -> Violation:
    limit = run_parameters.MAX_STORED_BYTES
    return Violation(run_parameters.ROOT, f"is larger than {limit} bytes with its numbers written out", limit)


def refuse_any(violations: Iterator[Violation]) -> None:
    """Raise InvalidRequest if there is any violation: one for each field, at most MAX_VIOLATIONS."""
    found: dict[str, Violation] = {}
    for violation in violations:
        found.setdefault(violation.field, violation)
        if len(found) == MAX_VIOLATIONS:
            break
    if found:
        raise InvalidRequest(list(found.values()))


def _check_draft(draft: JobDraft, owner_id: int | None) -> Iterator[Violation]:
    yield from check_id("dataset_id", draft.dataset_id)
    if draft.run_type is None:
        yield Violation("run_type", "is required and must be one of the known run types")
    if draft.source_commit_id and not _COMMIT.match(draft.source_commit_id):
        yield Violation("source_commit_id", "must be 64 hexadecimal digits")
    yield from check_text("description", draft.description, MAX_DESCRIPTION)
    yield from check_text("external_id", draft.external_id, MAX_EXTERNAL_ID)
    if not 0 <= draft.priority <= MAX_PRIORITY:
        yield Violation("priority", f"must be between 0 and {MAX_PRIORITY}", MAX_PRIORITY)
    if draft.request_id:
        yield from check_uuid("request_id", draft.request_id)
    yield from check_schedule(draft.schedule)
    yield from _check_depends_on(draft.schedule.depends_on)
    yield from _check_parameters(draft, owner_id)


def _check_parameters(draft: JobDraft, owner_id: int | None) -> Iterator[Violation]:
    parameters = draft.run_parameters
    if parameters is None:
        if not draft.violations:
            yield Violation(run_parameters.ROOT, "is required")
        return
    unusable = list(islice(run_parameters.check_json(parameters), MAX_VIOLATIONS))
    yield from unusable
    if not unusable and draft.run_type is not None:
        yield from run_parameters.check_schema(draft.run_type, parameters)
    yield from run_parameters.check_agreement(
        parameters,
        dataset_id=draft.dataset_id,
        owner_id=owner_id,
        source_commit_id=draft.source_commit_id.lower() or None,
    )


def _check_depends_on(texts: Sequence[str]) -> Iterator[Violation]:
    name = "depends_on_job_ids"
    if len(texts) > MAX_DEPENDENCIES:
        yield Violation(name, f"holds more than {MAX_DEPENDENCIES} ids", MAX_DEPENDENCIES)
        return
    seen: set[str] = set()
    for index, text in enumerate(texts):
        here = f"{name}[{index}]"
        yield from check_uuid(here, text)
        if text.lower() in seen:
            yield Violation(here, "is there twice")
        seen.add(text.lower())


def check_id(name: str, value: int) -> Iterator[Violation]:
    """Yield what is wrong with the id of a user or a data set."""
    if value <= 0:
        yield Violation(name, "is required and must be positive")


def check_dataset_name(name: str) -> Iterator[Violation]:
    """Yield what is wrong with the name of a data set."""
    if not name:
        yield Violation("name", "is required")
    yield from check_text("name", name, MAX_DATASET_NAME)


def check_uuid(name: str, text: str) -> Iterator[Violation]:
    """Yield what is wrong with a UUID: 36 characters, hyphens in their places, any case."""
    if not text:
        yield Violation(name, "is required")
    elif not _UUID.match(text):
        yield Violation(name, "must be a UUID in its canonical form")


def check_text(name: str, text: str, limit: int) -> Iterator[Violation]:
    """Yield what is wrong with a text: over the limit in UTF-8 bytes, or a NUL character in it."""
    if len(text.encode()) > limit:
        yield Violation(name, f"is longer than {limit} bytes", limit)
    if "\0" in text:
        yield Violation(name, "must not hold a NUL character")


def _request_hash(draft: JobDraft, sorted_parameters: bytes) -> bytes:
    """Hash the fields that are set: one added to the API later leaves the old hashes as they are."""
    fields = {
        "dataset_id": draft.dataset_id,
        "run_type": draft.run_type,
        "source_commit_id": draft.source_commit_id.lower(),
        "description": draft.description,
        "external_id": draft.external_id,
        "priority": draft.priority,
        "run_parameters": orjson.Fragment(sorted_parameters),
    }
    given = {name: value for name, value in fields.items() if value} | draft.schedule.given()
    return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).digest()
