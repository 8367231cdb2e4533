"""Plain Python values as messages, and back."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from google.protobuf import duration_pb2, struct_pb2

_EXACT = 2**53
"""Up to here a double, which is what a Struct has for numbers, holds every integer."""
_DEEPEST = 16
"""Levels that the service takes."""


def to_plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Return a Struct as plain values, whole numbers up to 2**53 as int."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if abs(number) <= _EXACT and number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return to_plain(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
    return None


def to_struct(values: Mapping[str, Any], struct: struct_pb2.Struct) -> None:
    """Fill an empty Struct.

    Raises ValueError or TypeError, with the path, for what JSON or the service can't hold.
    """
    # Sets the field even where there is nothing in it.
    struct.SetInParent()
    _fill(struct, values, "", 1)


def _fill(struct: struct_pb2.Struct, values: Mapping[str, Any], path: str, level: int) -> None:
    for key, item in values.items():
        if not isinstance(key, str):
            raise TypeError(f"{path}{key!r}: a key is text")
        _set(struct.fields[_text(key, path)], item, f"{path}{key}", level)


def _set(value: struct_pb2.Value, item: Any, path: str, level: int) -> None:
    if level > _DEEPEST:
        raise ValueError(f"{path}: more than {_DEEPEST} levels")
    match item:
        case None:
            value.null_value = struct_pb2.NULL_VALUE
        case bool():
            value.bool_value = item
        case int() | float():
            value.number_value = _number(item, path)
        case str():
            value.string_value = _text(item, path)
        case Mapping():
            value.struct_value.SetInParent()
            _fill(value.struct_value, item, f"{path}.", level + 1)
        case list() | tuple():
            value.list_value.SetInParent()
            for index, part in enumerate(item):
                _set(value.list_value.values.add(), part, f"{path}[{index}]", level + 1)
        case _:
            raise TypeError(f"{path}: {type(item).__name__} is not JSON")


def _number(number: float, path: str) -> float:
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{path}: {number} is not JSON")
    if isinstance(number, int) and abs(number) > _EXACT:
        raise ValueError(f"{path}: {number} can't be held exactly, send it as text")
    return float(number)


def _text(text: str, path: str) -> str:
    if "\0" in text:
        raise ValueError(f"{path}: U+0000 can't be stored")
    return text


def to_duration(span: timedelta) -> duration_pb2.Duration:
    """Return it as a message."""
    message = duration_pb2.Duration()
    message.FromTimedelta(span)
    return message
