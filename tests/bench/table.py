"""What was measured, as a table that a terminal and Markdown both show well."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = ("", "calls/s", "min..max", "p50 ms", "p99 ms", "service us", "Postgres us", "of empty")


@dataclass(frozen=True)
class Round:
    """One workload with so many callers, once. CPU in seconds; ratio: to the empty RPC of this round."""

    workload: str
    callers: int
    calls: int
    rate: float
    p50: float
    p99: float
    server_cpu: float
    postgres_cpu: float
    own_cpu: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """All rounds of one workload with so many callers: medians, the spread, CPU per call in microseconds."""

    workload: str
    callers: int
    rounds: int
    rate: float
    slowest: float
    fastest: float
    p50: float
    p99: float
    server_us: float
    postgres_us: float
    generator_us: float
    ratio: float


def row(rounds: Sequence[Round]) -> Row:
    """Put the rounds of one workload together."""
    calls = max(1, sum(item.calls for item in rounds))
    rates = [item.rate for item in rounds]
    return Row(
        workload=rounds[0].workload,
        callers=rounds[0].callers,
        rounds=len(rounds),
        rate=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        p50=statistics.median(item.p50 for item in rounds),
        p99=statistics.median(item.p99 for item in rounds),
        server_us=1e6 * sum(item.server_cpu for item in rounds) / calls,
        postgres_us=1e6 * sum(item.postgres_cpu for item in rounds) / calls,
        generator_us=1e6 * sum(item.own_cpu for item in rounds) / calls,
        ratio=statistics.median(item.ratio for item in rounds),
    )


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The tables, one for each number of callers."""
    for callers in sorted({item.callers for item in rows}):
        of_these = [item for item in rows if item.callers == callers]
        yield ""
        yield f"**{callers} {'caller' if callers == 1 else 'callers'}**"
        yield ""
        yield from _markdown([COLUMNS, *map(_cells, of_these)])


def _cells(item: Row) -> tuple[str, ...]:
    return (
        item.workload,
        f"{item.rate:,.0f}",
        f"{item.slowest:,.0f}..{item.fastest:,.0f}",
        f"{item.p50:.2f}",
        f"{item.p99:.2f}",
        f"{item.server_us:,.0f}",
        f"{item.postgres_us:,.0f}",
        f"{item.ratio:.2f}",
    )


def _markdown(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, texts in enumerate(cells):
        aligned = (
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        yield f"| {' | '.join(aligned)} |"
        if number == 0:
            yield (
                "|"
                + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths))
                + "|"
            )


def as_json(rows: Sequence[Row], machine: dict[str, Any]) -> dict[str, Any]:
    """The same for programs."""
    return {"machine": machine, "rows": [asdict(item) for item in rows]}
