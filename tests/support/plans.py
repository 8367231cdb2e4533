"""What Postgres does for a statement: the plan of what a store really sends."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
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


def scans_of_jobs(connection: psycopg.Connection, statement: Statement) -> list[Scan]:
    """Run the statement under EXPLAIN ANALYZE and return its scans of the jobs table."""
    return [scan for scan in scans(connection, statement) if scan.table == "jobs"]


def scans(connection: psycopg.Connection, statement: Statement) -> list[Scan]:
    """Run the statement under EXPLAIN ANALYZE and return its scans of tables."""
    with connection.transaction(force_rollback=True):
        explained = connection.execute(
            b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql.encode(), statement.parameters
        ).fetchone()
    assert explained is not None
    return list(_scans(explained[0][0]["Plan"]))


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
