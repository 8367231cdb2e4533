"""What Postgres does for a statement: the plan of what a store really sends."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import event

from jobs_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of a table. rows: read from it in all its loops, those filtered out included."""

    kind: str
    table: str
    index: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as it was sent, and its parameters."""

    sql: str
    parameters: Any


def sent(database: Database, work: Callable[[], object]) -> list[Statement]:
    """Run the work, return the statements that it sent."""
    statements: list[Statement] = []

    def note(_conn: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append(Statement(sql, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return statements


class Planned(Enum):
    """How the server comes to its plan."""

    CUSTOM = "for these values"
    GENERIC = "for any values"
    OWN_CHOICE = "as it likes, once it has planned it often enough"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a statement did: its scans, and the blocks that it read, cached or not."""

    scans: list[Scan]
    blocks: int


_EXPLAIN = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) ")
_NAME = re.compile(r"%\((\w+)\)s")


def explained(
    connection: psycopg.Connection, statement: Statement, planned: Planned = Planned.CUSTOM
) -> Plan:
    """Run the statement under EXPLAIN ANALYZE, and take it back."""
    with connection.transaction(force_rollback=True):
        # What the service sets for a list goes with the statement; so it must here.
        connection.execute("SET LOCAL jit = off")
        if planned is Planned.CUSTOM:
            query = _EXPLAIN + sql.SQL(statement.sql)
            found = connection.execute(query, statement.parameters).fetchone()
        else:
            found = _explained_prepared(connection, statement, planned)
    assert found is not None
    top = found[0][0]["Plan"]
    return Plan(list(_scans(top)), top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def _explained_prepared(
    connection: psycopg.Connection, statement: Statement, planned: Planned
) -> tuple[Any, ...] | None:
    names = list(dict.fromkeys(_NAME.findall(statement.sql)))
    numbered = _NAME.sub(lambda name: f"${names.index(name[1]) + 1}", statement.sql).replace("%%", "%")
    values = [sql.Literal(statement.parameters[name]) for name in names]
    execute = sql.SQL("EXECUTE looked_at") + (
        sql.SQL("({})").format(sql.SQL(", ").join(values)) if values else sql.SQL("")
    )
    connection.execute(f"PREPARE looked_at AS {numbered}".encode())
    try:
        if planned is Planned.GENERIC:
            connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        else:
            for _ in range(5):
                connection.execute(sql.SQL("EXPLAIN ") + execute)
        return connection.execute(_EXPLAIN + execute).fetchone()
    finally:
        connection.execute("DEALLOCATE looked_at")


def scans_of_jobs(connection: psycopg.Connection, statement: Statement) -> list[Scan]:
    """Run the statement under EXPLAIN ANALYZE and return its scans of the jobs table."""
    return [scan for scan in scans(connection, statement) if scan.table == "jobs"]


def scans(connection: psycopg.Connection, statement: Statement) -> list[Scan]:
    """Run the statement under EXPLAIN ANALYZE and return its scans of tables."""
    return explained(connection, statement).scans


def _scans(node: dict[str, Any]) -> Iterator[Scan]:
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        loops = node["Actual Loops"]
        read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        yield Scan(node["Node Type"], node["Relation Name"], _index(node), round(read * loops))
    for child in node.get("Plans", []):
        yield from _scans(child)


def _index(node: dict[str, Any]) -> str | None:
    below = [child.get("Index Name") for child in node.get("Plans", [])]
    name = node.get("Index Name") or next((name for name in below if name), None)
    return str(name) if name else None
