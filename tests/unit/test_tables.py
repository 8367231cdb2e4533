"""Tables as data are complete: every RPC, error, status, run type and word has its row."""

import re
from collections.abc import Iterator

import pytest

from jobs.v1 import access_pb2, errors_pb2, jobs_pb2
from jobs_service.core import run_parameters
from jobs_service.core.permissions import CREATING, NEEDED_LEVEL, NEEDED_ROLE, Action
from jobs_service.model import errors
from jobs_service.model.errors import JobsError
from jobs_service.model.job import JobStatus, JobView, RunType
from jobs_service.model.states import ACTIVE, TERMINAL, TRANSITIONS, may_become
from jobs_service.storage.job_rows import COLUMNS
from jobs_service.transport import access_requests, requests
from jobs_service.transport import errors as statuses

LATER_REASONS = {
    # Of an RPC that does not exist yet.
    "RESUME_TOKEN_EXPIRED",
}


def _subclasses(kind: type[JobsError]) -> Iterator[type[JobsError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_error_has_a_status_and_a_reason() -> None:
    assert set(statuses.STATUS) == set(_subclasses(JobsError))


def test_every_reason_is_given_by_some_error() -> None:
    given = {reason for _, reason in statuses.STATUS.values()}
    names = {errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_") for reason in given}
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert known - names == LATER_REASONS | {"UNSPECIFIED"}


def test_every_error_is_drawn_in_the_tree() -> None:
    drawn = set(re.findall(r"[A-Z][A-Za-z]+", errors.__doc__ or ""))
    assert {kind.__name__ for kind in _subclasses(JobsError)} <= drawn


def test_every_action_needs_a_level_or_a_role_and_every_run_type_an_action() -> None:
    assert set(NEEDED_LEVEL) | set(NEEDED_ROLE) == set(Action)
    assert not set(NEEDED_LEVEL) & set(NEEDED_ROLE)
    assert set(CREATING) == set(RunType)


def test_every_status_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert set(JobStatus) == ACTIVE | TERMINAL
    assert TRANSITIONS[JobStatus.COMPLETED] == frozenset()


@pytest.mark.parametrize("status", JobStatus)
def test_what_is_active_can_be_cancelled_and_nothing_else(status: JobStatus) -> None:
    assert may_become(status, JobStatus.CANCELLED) == (status in ACTIVE)


@pytest.mark.parametrize("run_type", RunType)
def test_every_run_type_has_a_schema(run_type: RunType) -> None:
    assert run_parameters.schema(run_type)["type"] == "object"


def test_every_view_has_its_columns() -> None:
    assert set(COLUMNS) == set(JobView)
    names = {view: [column.name for column in columns] for view, columns in COLUMNS.items()}
    assert set(names[JobView.BASIC]) == set(names[JobView.FULL]) == set(names[JobView.STATUS])


def test_the_api_and_the_model_know_the_same_words() -> None:
    assert set(requests.STATUSES) == set(jobs_pb2.JobStatus.values()) - {0}
    assert set(requests.RUN_TYPES) == set(jobs_pb2.RunType.values()) - {0}
    assert set(requests.VIEWS) == set(jobs_pb2.JobView.values()) - {0}
    assert set(access_requests.ROLES) == set(access_pb2.Role.values()) - {0}
    assert set(access_requests.LEVELS) == set(access_pb2.PermissionLevel.values()) - {0}
