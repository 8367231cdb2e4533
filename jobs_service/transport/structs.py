"""google.protobuf.Struct as Python values and back."""

from collections.abc import Iterable
from typing import Any

from google.protobuf import struct_pb2

from jobs_service.model.job import JsonObject

_EXACT = 2**53
"""Up to here a double holds every integer."""


class NoValue(Exception):
    """A Value without any kind: valid protobuf, but no JSON. path: where it is, from the Struct down."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str | int] = []

    def within(self, part: str | int) -> "NoValue":
        """Return this, one level further up."""
        self.path.insert(0, part)
        return self


def to_json(struct: struct_pb2.Struct) -> JsonObject:
    """Return a Struct as Python values; integral numbers up to 2**53 become ints.

    Raises NoValue. NaN and infinities stay floats: whoever takes the object checks it.
    """
    result = {}
    for key, value in struct.fields.items():
        try:
            result[key] = _to_value(value)
        except NoValue as missing:
            raise missing.within(key) from None
    return result


def _to_list(values: Iterable[struct_pb2.Value]) -> list[Any]:
    result = []
    for index, value in enumerate(values):
        try:
            result.append(_to_value(value))
        except NoValue as missing:
            raise missing.within(index) from None
    return result


def _to_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return _to_number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case "struct_value":
            return to_json(value.struct_value)
        case "list_value":
            return _to_list(value.list_value.values)
    raise NoValue


def _to_number(number: float) -> int | float:
    # 5, not 5.0: SQL reads it as an integer. NaN fails the comparison.
    return int(number) if abs(number) <= _EXACT and number.is_integer() else number


def to_struct(value: JsonObject, struct: struct_pb2.Struct) -> None:
    """Fill an empty Struct from Python values."""
    # Sets the field even where there is nothing in it.
    struct.SetInParent()
    for key, item in value.items():
        _fill(item, struct.fields[key])


def _fill(item: Any, value: struct_pb2.Value) -> None:
    if item is None:
        value.null_value = struct_pb2.NULL_VALUE
    elif isinstance(item, bool):
        value.bool_value = item
    elif isinstance(item, int | float):
        value.number_value = item
    elif isinstance(item, str):
        value.string_value = item
    elif isinstance(item, dict):
        to_struct(item, value.struct_value)
    else:
        value.list_value.SetInParent()
        for element in item:
            _fill(element, value.list_value.values.add())
