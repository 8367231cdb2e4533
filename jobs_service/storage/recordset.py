"""A batch as one JSON parameter: the cheapest way to hand many rows to one statement."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import Text, bindparam, cast, column, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine


def recordset(name: str, columns: Mapping[str, TypeEngine[Any]]) -> TableValuedAlias:
    """Return a FROM item with these columns, filled from the parameter "rows" (see rows)."""
    parameter = cast(bindparam("rows", type_=Text), JSONB)
    typed = [column(key, kind) for key, kind in columns.items()]
    return func.jsonb_to_recordset(parameter).table_valued(*typed).render_derived(name=name, with_types=True)


def rows(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the parameter for a statement with a recordset. UUIDs and times may be values."""
    return {"rows": orjson.dumps(list(records)).decode()}


def interval(value: timedelta | None) -> str | None:
    """Return how a span of time stands in a record."""
    return None if value is None else f"{value.total_seconds():.6f} s"
