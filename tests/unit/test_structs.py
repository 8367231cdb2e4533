"""google.protobuf.Struct to Python and back."""

import math
from typing import Any

import pytest
from google.protobuf import struct_pb2

from jobs_service.transport import structs

EXACT = 2**53


def there(value: Any) -> struct_pb2.Struct:
    """A Struct that holds the value under "k"."""
    struct = struct_pb2.Struct()
    structs.to_struct({"k": value}, struct)
    return struct


def there_and_back(value: Any) -> Any:
    """The value as it is after a journey over the wire."""
    return structs.to_json(struct_pb2.Struct.FromString(there(value).SerializeToString()))["k"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        1,
        5,
        -5,
        EXACT,
        -EXACT,
        0.5,
        -1.25,
        12.482,
        1e300,
        5e-324,
        "",
        "text",
        "\u00e9\u20ac\U0001f600",
        "a\0b",
        [],
        {},
        [[]],
        [{}],
        {"": {}},
        {"a.b": [1, "1", None, True, 1.5, {"c": []}]},
    ],
    ids=repr,
)
def test_a_value_comes_back_as_it_went(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("number", [5.0, 0.0, -0.0, 1e15, float(EXACT), -float(EXACT)])
def test_a_whole_number_up_to_two_to_the_53_becomes_an_int(number: float) -> None:
    back = there_and_back(number)
    assert type(back) is int
    assert back == number


@pytest.mark.parametrize("number", [float(EXACT) + 2, -float(EXACT) - 2, 1e16, 1e300])
def test_a_whole_number_beyond_two_to_the_53_stays_a_float(number: float) -> None:
    back = there_and_back(number)
    assert type(back) is float
    assert back == number


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_of_json_stays_as_it_is_for_whoever_checks_it(number: float) -> None:
    back = there_and_back(number)
    assert type(back) is float
    assert repr(back) == repr(number)


def test_a_bool_is_no_number() -> None:
    struct = there([True, 1, False, 0])
    kinds = [item.WhichOneof("kind") for item in struct.fields["k"].list_value.values]
    assert kinds == ["bool_value", "number_value"] * 2


def test_empty_objects_and_lists_are_set_and_not_missing() -> None:
    assert there({}).fields["k"].WhichOneof("kind") == "struct_value"
    assert there([]).fields["k"].WhichOneof("kind") == "list_value"


def test_an_empty_object_sets_the_field_that_it_fills() -> None:
    outer = struct_pb2.Value()
    structs.to_struct({}, outer.struct_value)
    assert outer.WhichOneof("kind") == "struct_value"


@pytest.mark.parametrize(
    "struct",
    [
        struct_pb2.Struct(fields={"k": struct_pb2.Value()}),
        struct_pb2.Struct(
            fields={"k": struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value()]))}
        ),
        struct_pb2.Struct(
            fields={
                "k": struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"k": struct_pb2.Value()})),
            }
        ),
    ],
    ids=["at the top", "in a list", "in an object"],
)
def test_a_value_without_a_kind_is_no_json(struct: struct_pb2.Struct) -> None:
    with pytest.raises(structs.NoValue):
        structs.to_json(struct)
