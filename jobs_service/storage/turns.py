"""The turn of a job: its place between the data sets, so that the flood of one starves no other."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Text,
    case,
    cast,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS

from jobs_service.storage.queue_tables import TURN_CLOCKS, job_queue


def _clock(name: str) -> ColumnElement[int]:
    # A function, as in the view pg_sequences: read as a table, a sequence is a scan of every plan.
    value = func.pg_sequence_last_value(cast(literal(name, Text, literal_execute=True), REGCLASS))
    # Once for the statement, not once for each row.
    return select(func.coalesce(value, 0, type_=BigInteger())).scalar_subquery()


def clock_of(run_type: ColumnElement[str]) -> ColumnElement[int]:
    """Return the expression of the highest turn of this run type that was ever claimed, 0 for none."""
    return case(
        *(
            (run_type == literal(kind.value, Text, literal_execute=True), _clock(clock.name))
            for kind, clock in TURN_CLOCKS.items()
        )
    )


def clock_named(run_type: ColumnElement[str]) -> ColumnElement[Any]:
    """Return the expression of the sequence that is the clock of this run type."""
    return case(
        *(
            (
                run_type == literal(kind.value, Text, literal_execute=True),
                cast(literal(clock.name, Text, literal_execute=True), REGCLASS),
            )
            for kind, clock in TURN_CLOCKS.items()
        )
    )


def turn_of(new: FromClause, *order: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the expression of the turn that each row of new gets, which has a data set and a run type.

    One more than the last of its data set and run type in the queue, or than the clock where that is
    ahead; then those of one data set count on, in the order given. It locks nobody: two transactions at
    once may give a turn twice, and that data set then has two places in a round.
    """
    clock = clock_of(new.c.run_type)
    last = (
        select(func.max(job_queue.c.turn))
        .where(
            job_queue.c.dataset_id == new.c.dataset_id,
            job_queue.c.run_type == new.c.run_type,
            # Below are rows that were claimed, dead ones where an old transaction keeps them.
            job_queue.c.turn > clock,
        )
        .scalar_subquery()
    )
    nth = func.row_number().over(partition_by=[new.c.dataset_id, new.c.run_type], order_by=order)
    return cast(func.greatest(clock, last) + nth, BigInteger)


def kept_turn(
    source: FromClause, claims: ColumnElement[int], *order: ColumnElement[Any]
) -> ColumnElement[int]:
    """Return the expression of the turn that a job comes into the queue with: its own, or a new one.

    A retry keeps its turn. What could not be claimed until now, and was passed by the clock, gets a new one:
    a flood that waited for a time or for another job would come before everybody. So does what has none:
    release 0.1.0 has made and ended the job, and somebody retries it.
    """
    passed_by = (claims == 0) & (source.c.turn <= clock_of(source.c.run_type))
    needs_one = passed_by | source.c.turn.is_(None)
    return case((needs_one, turn_of(source, *order)), else_=source.c.turn)
