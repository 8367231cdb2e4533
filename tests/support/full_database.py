"""A database with a million jobs, some of what is in it, and what is sent to it."""

from collections.abc import Callable
from typing import Any

import pytest

from jobs_service.model.caller import Caller
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_store import RequestKey
from tests.support.plans import Plan, Statement, explained, sent
from tests.support.world import World

Work = Callable[[Transaction], object]


class Full:
    """A database with a million jobs, and some of what is in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.caller = Caller("mi00007", 7)
        self.job_ids = self._column("SELECT job_id FROM jobs ORDER BY md5(job_id::text) LIMIT 100")
        self.active = self._column("SELECT job_id FROM jobs WHERE end_time IS NULL LIMIT 100")
        found = world.sql.execute(
            "SELECT owner_id, creator_id, request_id FROM jobs WHERE request_id IS NOT NULL LIMIT 100"
        )
        self.keys = [RequestKey(*row) for row in found]
        self.waiting = self._column("SELECT job_id FROM jobs WHERE dependencies > 0 LIMIT 100")
        self.ended = self._column("SELECT job_id FROM ended_dependencies ORDER BY job_id LIMIT 100")

    def _column(self, query: str) -> list[Any]:
        return [row[0] for row in self.world.sql.execute(query.encode())]

    def sent_in_a_snapshot(self, work: Work) -> list[Statement]:
        """What is sent as lists are read, without the setting of the limits itself."""

        def run() -> None:
            with self.world.database.snapshot(seconds=60) as tx:
                work(tx)

        settings, *statements = sent(self.world.database, run)
        assert "force_custom_plan" in settings.parameters.values()
        return statements

    def sent_in_a_transaction(self, work: Work) -> list[Statement]:
        """What is sent as everything else is done; it is taken back."""

        def run() -> None:
            with self.world.database.transaction() as tx:
                work(tx)
                raise InterruptedError

        def interrupted() -> None:
            with pytest.raises(InterruptedError):
                run()

        return sent(self.world.database, interrupted)

    def listed(self, work: Work) -> Plan:
        """What all statements of a list read, together; they are always planned for their values."""
        plans = [explained(self.world.sql, one) for one in self.sent_in_a_snapshot(work)]
        return Plan([scan for plan in plans for scan in plan.scans], sum(plan.blocks for plan in plans))
