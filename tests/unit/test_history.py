"""The checker of the fault tests finds every fault that it is there for."""

from collections.abc import Callable

import pytest

from tests.support.history import History, Stored

CREATED, CANCELLED = ("j", "CREATED"), ("j", "CANCELLED")
PENDING = Stored("j", "r", "PENDING", 1)


def acknowledged() -> History:
    history = History()
    history.sending("r")
    history.created("r", "j")
    history.read("j", 1, "PENDING", since=0)
    return history


def cancelled() -> History:
    history = acknowledged()
    history.cancelling("j")
    history.cancelled("j")
    return history


def test_what_was_said_and_is_there_is_right() -> None:
    acknowledged().compare([PENDING], [CREATED]).require()
    cancelled().compare([Stored("j", "r", "CANCELLED", 2)], [CREATED, CANCELLED]).require()


def test_an_acknowledged_job_that_is_not_there_is_lost() -> None:
    assert acknowledged().compare([], []).lost == 1
    assert acknowledged().compare([Stored("k", "r", "PENDING", 1)], [("k", "CREATED")]).lost == 1


def test_a_request_with_two_jobs_is_doubled() -> None:
    verdict = acknowledged().compare([PENDING, Stored("k", "r", "PENDING", 1)], [CREATED, ("k", "CREATED")])
    assert verdict.doubled == 1


@pytest.mark.parametrize(
    ("job", "events"),
    [
        (PENDING, []),
        (PENDING, [CREATED, CREATED]),
        (PENDING, [CREATED, CANCELLED]),
        (Stored("j", "r", "PENDING", 2), [CREATED]),
        (Stored("j", "r", "CANCELLED", 2), [CREATED]),
        (Stored("j", "r", "CANCELLED", 2), [CREATED, CANCELLED]),
        (Stored("j", "other", "PENDING", 1), [CREATED]),
        (PENDING, [CREATED, ("k", "CREATED")]),
    ],
    ids=[
        "no history",
        "created twice",
        "cancelled by its history alone",
        "a version without an event",
        "cancelled without an event",
        "cancelled by nobody",
        "never asked for",
        "a history without a job",
    ],
)
def test_a_job_that_contradicts_its_history_is_wrong(job: Stored, events: list[tuple[str, str]]) -> None:
    assert acknowledged().compare([job], events).wrong


def test_a_cancel_that_was_acknowledged_and_is_not_there_is_wrong() -> None:
    assert cancelled().compare([PENDING], [CREATED]).wrong


@pytest.mark.parametrize(
    "answer",
    [
        lambda history: history.read("j", 1, "PENDING", since=2),
        lambda history: history.read("j", 1, "CANCELLED", since=1),
        lambda history: history.read("j", 3, "RUNNING", since=1),
        lambda history: history.not_listed("j"),
        lambda history: history.created("r", "another"),
        lambda history: (history.cancelling("j"), history.refused("j")),
    ],
    ids=[
        "older than before",
        "one version, two statuses",
        "newer than what is there",
        "left out of a list",
        "acknowledged twice",
        "cancelled before it was asked",
    ],
)
def test_an_answer_that_contradicts_another_is_wrong(answer: Callable[[History], object]) -> None:
    history = acknowledged()
    answer(history)
    assert history.compare([PENDING], [CREATED]).wrong
