"""What is checked of a request before anybody looks into the database."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobs_service.core.run_parameters import MAX_BYTES, digits_left_out
from jobs_service.core.scheduling import RetryDraft, ScheduleDraft
from jobs_service.core.validation import JobDraft, checked_job
from jobs_service.model.errors import InvalidRequest, PayloadTooLarge
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.retry import RetryPolicy


def _draft(**parameters: Any) -> JobDraft:
    return JobDraft(dataset_id=1, run_type=RunType.IMPORT, run_parameters={"file_path": "a", **parameters})


def test_numbers_that_the_database_writes_out_count_in_full() -> None:
    numbers = [1e308] * 36_000
    assert len(str(numbers)) < 10 * MAX_BYTES
    with pytest.raises(PayloadTooLarge) as refusal:
        checked_job(_draft(numbers=numbers), owner_id=1)
    assert "numbers written out" in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "digits"), [(0.0, 0), (1.5, 0), (1e308, 308), (-1e-300, 300), ([1e20, {"a": 1e10}], 30), (7, 0)]
)
def test_an_exponent_counts_as_the_digits_it_stands_for(value: Any, digits: int) -> None:
    assert digits_left_out(value) == digits


def test_a_field_is_reported_once_whatever_is_wrong_with_it() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        checked_job(_draft(target=7), owner_id=1)
    assert [violation.field for violation in refusal.value.violations] == ["run_parameters.target"]


def test_the_hash_of_a_request_is_that_of_what_is_set() -> None:
    plain = checked_job(_draft(), owner_id=1)
    same = JobDraft(
        dataset_id=1,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "a"},
        priority=0,
        description="",
        request_id="4f6d9f0e-6d0a-4c1e-9d57-0c8f4be1c3a2",
        validate_only=True,
    )
    assert checked_job(same, owner_id=1).request_hash == plain.request_hash
    # Written down: a hash that changes would turn every repeated request into a conflict.
    assert plain.request_hash.hex() == "4e14e9ffb04fc1a572e8fa903f976fa81747d6dd2fce206ff91173ebb571b7a2"


def test_the_order_of_keys_does_not_change_the_hash() -> None:
    one = checked_job(_draft(a=1, b={"c": 2, "d": 3}), owner_id=1)
    other = checked_job(_draft(b={"d": 3, "c": 2}, a=1), owner_id=1)
    assert one.request_hash == other.request_hash


_ID = "0198a7c2-7d3e-7b41-9c55-3f6d2a1b4c8e"
_OTHER_ID = "0198a7c2-7d3e-7b41-9c55-3f6d2a1b4c8f"


def _scheduled(**fields: Any) -> NewJob:
    return checked_job(replace(_draft(), schedule=ScheduleDraft(**fields)), owner_id=1)


def test_each_field_that_says_when_a_job_runs_counts_in_the_hash_once_it_is_set() -> None:
    hashes = [
        _scheduled(**fields).request_hash.hex()
        for fields in (
            {},
            {"max_attempts": 3},
            {"start_delay": timedelta(0)},
            {"run_timeout": timedelta(hours=24)},
            {"retry": RetryDraft(initial=timedelta(seconds=1))},
            {"retry": RetryDraft(longest=timedelta(minutes=10))},
            {"retry": RetryDraft(multiplier=2.0)},
            {"depends_on": (_ID,)},
            {"depends_on": (_ID, _OTHER_ID)},
            {"depends_on_indexes": (0,), "place": 2},
            {"depends_on_indexes": (1,), "place": 2},
            {"on_dependency_failure": "CANCEL"},
            {"on_dependency_failure": "KEEP_WAITING"},
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == checked_job(_draft(), owner_id=1).request_hash.hex()
    # Written down, as the first one is above.
    full = _scheduled(
        max_attempts=5,
        start_delay=timedelta(seconds=1.5),
        run_timeout=timedelta(hours=1),
        retry=RetryDraft(initial=timedelta(seconds=2), longest=timedelta(minutes=1), multiplier=1.5),
        depends_on=(_ID,),
        on_dependency_failure="KEEP_WAITING",
    )
    assert full.request_hash.hex() == "43f0d3ee13e5d03f9aa2f7063f069278cf7588c55ffb3ba5494fbdb8447b5c23"


def test_the_order_and_the_case_of_dependencies_do_not_change_the_hash() -> None:
    one = _scheduled(depends_on=(_ID, _OTHER_ID))
    other = _scheduled(depends_on=(_OTHER_ID.upper(), _ID))
    assert one.request_hash == other.request_hash
    assert other.depends_on == (UUID(_OTHER_ID), UUID(_ID))


@pytest.mark.parametrize(
    ("draft", "policy"),
    [
        (None, None),
        (RetryDraft(), None),
        (RetryDraft(multiplier=3.0), RetryPolicy(multiplier=3.0)),
        (RetryDraft(initial=timedelta(0)), RetryPolicy(initial=timedelta(0))),
        (
            RetryDraft(initial=timedelta(hours=1)),
            RetryPolicy(initial=timedelta(hours=1), longest=timedelta(hours=1)),
        ),
        (RetryDraft(longest=timedelta(seconds=5)), RetryPolicy(longest=timedelta(seconds=5))),
    ],
)
def test_what_a_retry_policy_leaves_out_has_its_default(
    draft: RetryDraft | None, policy: RetryPolicy | None
) -> None:
    assert _scheduled(retry=draft).retry_policy == policy


@pytest.mark.parametrize(
    ("indexes", "wrong"),
    [
        ((2,), "depends_on_indexes[0]"),
        ((0, -1), "depends_on_indexes[1]"),
        ((1, 0, 1), "depends_on_indexes[2]"),
    ],
)
def test_only_earlier_entries_can_be_waited_for_each_once(indexes: tuple[int, ...], wrong: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        _scheduled(depends_on_indexes=indexes, place=2)
    assert [violation.field for violation in refusal.value.violations] == [wrong]


def test_ids_and_indexes_count_together() -> None:
    ids = [f"{_ID[:-3]}{number:03x}" for number in range(99)]
    assert len(_scheduled(depends_on=ids, depends_on_indexes=(0,), place=3).depends_on) == 99
    with pytest.raises(InvalidRequest) as refusal:
        _scheduled(depends_on=ids, depends_on_indexes=(0, 1), place=3)
    assert refusal.value.metadata == {"field": "depends_on_indexes", "limit": "100"}
