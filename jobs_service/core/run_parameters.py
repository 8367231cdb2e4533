"""What run_parameters may hold: limits of any JSON, the schema of the run type, and no other's data set."""

import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError

from jobs_service.model.errors import Violation
from jobs_service.model.job import JsonObject, RunType
from jobs_service.model.paths import field_path

ROOT = "run_parameters"
MAX_BYTES = 256 * 1024
"""As compact JSON."""
MAX_STORED_BYTES = 4 * MAX_BYTES
"""As Postgres writes JSONB, which knows no exponents: 1e308 takes 309 digits there."""
MAX_LEVELS = 16
"""The object itself is level 1."""

_Path = tuple[str | int, ...]


def check_json(parameters: JsonObject, *, root: str = ROOT) -> Iterator[Violation]:
    """Yield what no JSON of ours may have: too many levels, NaN, infinities, NUL characters.

    root: the path of the field that it is in.
    """
    return _check_value(root, parameters, ())


def _check_value(root: str, value: Any, path: _Path) -> Iterator[Violation]:
    if isinstance(value, dict | list):
        if len(path) >= MAX_LEVELS:
            yield Violation(field_path(root, path), f"is deeper than {MAX_LEVELS} levels", MAX_LEVELS)
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and "\0" in key:
                yield Violation(field_path(root, (*path, key)), "has a NUL character in its key")
            yield from _check_value(root, item, (*path, key))
    elif isinstance(value, str) and "\0" in value:
        yield Violation(field_path(root, path), "must not hold a NUL character")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Violation(field_path(root, path), "must be a finite number")


def digits_left_out(value: Any) -> int:
    """Return about how many digits the exponents in a JSON value stand for."""
    if isinstance(value, float):
        return abs(int(math.log10(abs(value)))) if value and math.isfinite(value) else 0
    if isinstance(value, dict):
        return sum(map(digits_left_out, value.values()))
    return sum(map(digits_left_out, value)) if isinstance(value, list) else 0


def check_schema(run_type: RunType, parameters: JsonObject) -> Iterator[Violation]:
    """Yield what the run type's JSON Schema says against the parameters, one for each place."""
    seen: set[str] = set()
    for error in _VALIDATORS[run_type].iter_errors(parameters):
        violation = _of_schema(error)
        if violation.field not in seen:
            seen.add(violation.field)
            yield violation


def schema(run_type: RunType) -> dict[str, Any]:
    """Return the JSON Schema of a run type's parameters."""
    file = resources.files("jobs.v1") / "run_parameters" / f"{run_type.value.lower()}.schema.json"
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


# Read at start: a schema that is missing or broken must not show in a call.
_VALIDATORS = {run_type: Draft202012Validator(schema(run_type)) for run_type in RunType}


def _of_schema(error: ValidationError) -> Violation:
    """Say it in our words: the library's own quote the value, which may be large or secret."""
    kind: Any = error.kind
    path: list[str | int] = list(error.instance_path)
    match kind.name:
        case "required":
            return Violation(field_path(ROOT, [*path, kind.property]), "is required")
        case "type":
            return Violation(field_path(ROOT, path), f"must be of type {' or '.join(sorted(kind.types))}")
        case "enum":
            words = ", ".join(str(option) for option in kind.options)
            return Violation(field_path(ROOT, path), f"must be one of: {words}")
        case "anyOf":
            needed = [branch[0].kind.property for branch in kind.context]
            return Violation(field_path(ROOT, path), f"needs one of: {', '.join(needed)}")
        case "falseSchema":
            return Violation(field_path(ROOT, path), "can't stand beside the other fields given")
        case "minLength" | "minItems":
            return Violation(field_path(ROOT, path), "must not be empty")
        case "minimum" | "maximum" | "maxItems" as bound:
            limit = int(kind.limit)
            phrase = {
                "minimum": "must be at least",
                "maximum": "must be at most",
                "maxItems": "holds more items than",
            }
            return Violation(field_path(ROOT, path), f"{phrase[bound]} {limit}", limit)
    return Violation(field_path(ROOT, path), f"does not fit the schema ({kind.name})")


def check_agreement(
    parameters: JsonObject, *, dataset_id: int, owner_id: int | None, source_commit_id: str | None
) -> Iterator[Violation]:
    """Yield what names another data set, user or commit than the request does.

    A worker that trusts the parameters must not be talked into another data set. null counts as
    not given. owner_id None: not known, so not compared.
    """
    target = parameters.get("target")
    if target is not None and not isinstance(target, dict):
        yield Violation(field_path(ROOT, ["target"]), "must be of type object")
    yield from check_owner(parameters, owner_id)
    places: list[tuple[list[str | int], Any, Any, str]] = [
        (["dataset_id"], parameters.get("dataset_id"), dataset_id, "dataset_id"),
        (["source_commit_id"], parameters.get("source_commit_id"), source_commit_id, "source_commit_id"),
    ]
    if isinstance(target, dict):
        places.append((["target", "dataset_id"], target.get("dataset_id"), dataset_id, "dataset_id"))
    for path, given, expected, name in places:
        if given is not None and expected is not None and not _same(given, expected):
            yield Violation(field_path(ROOT, path), f"must equal {name} of the request")


def check_owner(parameters: JsonObject, owner_id: int | None) -> Iterator[Violation]:
    """Yield a user_id that is not the owner's. owner_id None: not known (yet), so not compared."""
    given = parameters.get("user_id")
    if given is not None and owner_id is not None and not _same(given, owner_id):
        yield Violation(field_path(ROOT, ["user_id"]), "must equal the owner's user id")


def _same(given: Any, expected: int | str) -> bool:
    if isinstance(expected, str):
        return isinstance(given, str) and given.lower() == expected
    # True == 1 in Python, but not in JSON.
    return isinstance(given, int) and not isinstance(given, bool) and given == expected


def sql_sources(parameters: JsonObject) -> list[int]:
    """Return the data sets that a SQL_TRANSFORM reads, in order and once each."""
    return list(dict.fromkeys(int(source["dataset_id"]) for source in parameters["sources"]))
