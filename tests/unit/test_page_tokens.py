"""Page tokens: a place that comes back whole, bound to filter and view."""

import base64
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobs_service.model.errors import InvalidPageToken
from jobs_service.model.job import JobStatus, JobView, RunType
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.transport.page_tokens import decode, encode

MOMENT = datetime(2026, 11, 23, 20, 28, 4, 123457, UTC)
CURSOR = Cursor(MOMENT, UUID("0198a7c2-7d3e-7b41-9c55-3f6d2a1b4c8e"))
ANY = JobFilter()

CHANGED: dict[str, list[Any]] = {
    "owner_id": [1, 2],
    "owner_soeid": ["al00001", "bo00001", ""],
    "dataset_id": [1, 2],
    "statuses": [frozenset({JobStatus.PENDING}), frozenset(JobStatus)],
    "run_types": [frozenset({RunType.IMPORT}), frozenset(RunType)],
    "external_id": ["", "a", "b", "None"],
    "create_time_from": [MOMENT, MOMENT + timedelta(microseconds=1)],
    "create_time_to": [MOMENT, MOMENT + timedelta(microseconds=1)],
}
FILTERS = [
    ANY,
    *(replace(ANY, **{name: value}) for name, values in CHANGED.items() for value in values),
]


@pytest.mark.parametrize(
    "moment",
    [
        MOMENT,
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
    ids=str,
)
def test_a_place_comes_back_to_the_microsecond(moment: datetime) -> None:
    cursor = Cursor(moment, CURSOR.job_id)
    assert decode(encode(cursor, ANY, JobView.BASIC), ANY, JobView.BASIC) == cursor


def test_a_token_is_short_and_safe_in_a_url() -> None:
    token = encode(CURSOR, ANY, JobView.FULL)
    assert len(token) <= 64
    assert token.replace("-", "").replace("_", "").isalnum()


def test_every_field_of_a_filter_is_tried_here() -> None:
    assert set(CHANGED) == {each.name for each in fields(JobFilter)}


def test_a_token_is_good_for_its_own_filter_alone() -> None:
    for made_for in FILTERS:
        token = encode(CURSOR, made_for, JobView.BASIC)
        for sent_with in FILTERS:
            if sent_with == made_for:
                assert decode(token, sent_with, JobView.BASIC) == CURSOR
            else:
                with pytest.raises(InvalidPageToken):
                    decode(token, sent_with, JobView.BASIC)


def test_a_token_is_good_for_its_own_view_alone() -> None:
    token = encode(CURSOR, ANY, JobView.BASIC)
    with pytest.raises(InvalidPageToken):
        decode(token, ANY, JobView.FULL)


def test_the_order_of_the_words_in_a_filter_does_not_matter() -> None:
    statuses = list(JobStatus)
    one = replace(ANY, statuses=frozenset(statuses))
    other = replace(ANY, statuses=frozenset(reversed(statuses)))
    assert encode(CURSOR, one, JobView.BASIC) == encode(CURSOR, other, JobView.BASIC)


def test_a_change_of_any_letter_is_noticed() -> None:
    token = encode(CURSOR, ANY, JobView.BASIC)
    for place, letter in enumerate(token):
        for other in "A_9" if letter not in "A_9" else "bcd":
            with pytest.raises(InvalidPageToken):
                decode(token[:place] + other + token[place + 1 :], ANY, JobView.BASIC)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "!!!!",
        "\u00e9" * 44,
        "\0" * 44,
        "====",
        "A" * 43,
        "A" * 44,
        "A" * 1_000_000,
        base64.urlsafe_b64encode(b"\xff" * 33).decode(),
        base64.urlsafe_b64encode(b"\x01" + b"\x7f" * 32).decode(),
        base64.urlsafe_b64encode(b"\x01" + b"\x80" + bytes(31)).decode(),
    ],
    ids=lambda token: ascii(token[:12]),
)
def test_what_is_no_token_is_refused_as_one(token: str) -> None:
    with pytest.raises(InvalidPageToken) as refusal:
        decode(token, ANY, JobView.BASIC)
    assert refusal.value.metadata == {"field": "page_token"}
