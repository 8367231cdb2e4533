"""What is checked of a request before anybody looks into the database."""

from typing import Any

import pytest

from jobs_service.core.run_parameters import MAX_BYTES, digits_left_out
from jobs_service.core.validation import JobDraft, checked_job
from jobs_service.model.errors import InvalidRequest, PayloadTooLarge
from jobs_service.model.job import RunType


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
