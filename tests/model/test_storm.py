"""Everything at once on one database: what must hold holds at every moment, and all jobs end."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from jobs_service.core.access_service import AccessService
from jobs_service.core.job_service import JobService
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.access import OPERATOR
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import JobsError, RowLocked, TransactionRolledBack
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest, CreateResult, RetryRequest
from jobs_service.model.retry import RetryPolicy
from jobs_service.model.work import (
    ClaimRequest,
    ClaimResult,
    Completion,
    Failure,
    FinishRequest,
    Heartbeat,
    HeartbeatRequest,
    Outcome,
    Release,
)
from tests.model.comparison import idle_places
from tests.model.duties import Duties
from tests.model.invariants import Snapshot, changes, snapshot, violations
from tests.support.postgres import connect
from tests.support.work_rows import age_leases, one
from tests.support.world import World

THREADS = 8
SEED = int(os.environ.get("TESTS_MODEL_SEED", "1"))
RUN_TYPES = (RunType.IMPORT, RunType.EXPLORATION)
AT_ONCE = RetryPolicy(initial=timedelta(0), longest=timedelta(0))
# What a call may be refused with because another one was faster, or holds what it needs.
TO_BE_EXPECTED = {
    "DependencyNotFound",
    "DependencyNotSatisfiable",
    "JobNotCancellable",
    "JobNotFound",
    "JobNotRetryable",
    "LeaseLost",
    "RowLocked",
}


class Storm:
    """Threads that do whatever comes to their mind, until told to stop."""

    def __init__(self, world: World) -> None:
        self.world, self.signals = world, Signals()
        self.jobs = JobService(world.database, self.signals)
        self.work = WorkerService(world.database, self.signals)
        self.access = AccessService(world.database, self.signals).changes(by=OPERATOR)
        self.datasets = [world.dataset() for _ in range(3)]
        self.owner = world.user(grants=dict.fromkeys(self.datasets, Level.WRITE)).caller
        self.program = world.user(Role.SERVICE).caller
        for run_type in RUN_TYPES:
            world.access.grant_run_type(self.program.soeid, run_type)
        self.ids: list[UUID] = []
        self.tokens: list[tuple[UUID, UUID]] = []
        self.told: Counter[str] = Counter()
        self.unexpected: list[BaseException] = []
        self._stop = threading.Event()

    def run(self, seconds: float, watch: Callable[[], None]) -> None:
        """For so long; watch is called again and again meanwhile."""
        threads = [threading.Thread(target=self._go_on, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            over = time.monotonic() + seconds
            while time.monotonic() < over and not self.unexpected:
                watch()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)
        assert not any(thread.is_alive() for thread in threads), "a call hangs"

    def _go_on(self, number: int) -> None:
        chance = random.Random(SEED * 100 + number)
        duties = Duties(self.world.database, self.signals)
        weighed = [
            (self._create, 8),
            (self._claim, 8),
            (self._finish, 12),
            (self._beat, 3),
            (self._cancel, 2),
            (self._retry, 3),
            (self._age, 1),
            (self._limit, 1),
        ]
        actions = [action for action, weight in weighed for _ in range(weight)]
        runs = (duties.sweep, duties.promote, duties.tell_dependants, duties.fill)
        with connect(self.world.database_url) as sql:
            while not self._stop.is_set():
                try:
                    if chance.random() < 0.1:
                        chance.choice(runs)()
                    else:
                        chance.choice(actions)(chance, sql)
                except (TransactionRolledBack, RowLocked) as error:
                    # The batcher would run it again, or the caller.
                    self.told[type(error).__name__] += 1
                except BaseException as error:
                    self.unexpected.append(error)
                    return

    def _create(self, chance: random.Random, _: object) -> None:
        recent = self.ids[-15:]
        jobs = [
            NewJob(
                dataset_id=chance.choice(self.datasets),
                run_type=chance.choice(RUN_TYPES),
                run_parameters={},
                payload_bytes=2,
                request_hash=b"0" * 32,
                max_attempts=chance.choice((1, 3)),
                retry_policy=AT_ONCE,
                depends_on=tuple(chance.sample(recent, min(len(recent), chance.choice((0, 0, 1, 3))))),
                keep_waiting=chance.random() < 0.2,
            )
            for _ in range(chance.choice((1, 3)))
        ]
        for result in self._count(self.jobs.create_jobs([CreateRequest(self.owner, job) for job in jobs])):
            if isinstance(result, CreateResult):
                self.ids.append(result.job.job_id)

    def _claim(self, chance: random.Random, _: object) -> None:
        request = ClaimRequest(
            caller=self.program,
            worker_id="worker",
            run_types=frozenset(chance.sample(RUN_TYPES, chance.choice((1, 2)))),
            max_jobs=chance.choice((1, 5)),
            lease_duration=timedelta(minutes=1),
        )
        [result] = self._count(self.work.claim_jobs([request]))
        assert isinstance(result, ClaimResult)
        self.tokens += [(claim.job.job_id, claim.lease_token) for claim in result.claims]

    def _some(self, chance: random.Random) -> list[tuple[UUID, UUID]]:
        recent = self.tokens[-30:]
        return chance.sample(recent, min(len(recent), chance.choice((1, 4))))

    def _finish(self, chance: random.Random, _: object) -> None:
        done: list[Outcome] = [Completion({"rows": 1}, 10, None)] * 3
        outcomes = [*done, Failure("E", "", chance.random() < 0.3, timedelta(0)), Release()]
        requests = [
            FinishRequest(self.program, *lease, chance.choice(outcomes)) for lease in self._some(chance)
        ]
        if requests:
            self._count(self.work.finish_jobs(requests))

    def _beat(self, chance: random.Random, _: object) -> None:
        beats = tuple(Heartbeat(*lease, {"percent": chance.random()}) for lease in self._some(chance))
        if beats:
            self._count(
                self.work.heartbeat_jobs([HeartbeatRequest(self.program, beats, timedelta(minutes=1))])
            )

    def _cancel(self, chance: random.Random, _: object) -> None:
        picked = chance.sample(self.ids[-20:], min(len(self.ids[-20:]), 2))
        if picked:
            self._count(self.jobs.cancel_jobs([CancelRequest(self.owner, job_id, None) for job_id in picked]))

    def _retry(self, chance: random.Random, _: object) -> None:
        picked = chance.sample(self.ids[-30:], min(len(self.ids[-30:]), 4))
        if picked:
            self._count(self.jobs.retry_jobs([RetryRequest(self.owner, job_id) for job_id in picked]))

    def _age(self, chance: random.Random, sql: psycopg.Connection) -> None:
        age_leases(sql, [str(job_id) for job_id, _ in self._some(chance)])

    def _limit(self, chance: random.Random, _: object) -> None:
        self.access.set_limit(chance.choice(self.datasets), chance.choice((None, 1, 4)))

    def _count(self, results: Sequence[Any]) -> Sequence[Any]:
        self.told.update(type(one).__name__ if isinstance(one, JobsError) else "OK" for one in results)
        return results


def require_all_ends(storm: Storm) -> None:
    """Let everything that is left be done: jobs end, but those that wait for one that has failed."""
    world, duties = storm.world, Duties(storm.world.database, storm.signals)
    for dataset_id in storm.datasets:
        storm.access.set_limit(dataset_id, None)
    running = "SELECT count(*) FROM job_leases"
    while True:
        duties.promote()
        duties.tell_dependants()
        duties.fill()
        age_leases(world.sql, list(snapshot(world.sql).leases))
        duties.sweep()
        assert one(world.sql, running) == 0
        request = ClaimRequest(
            caller=storm.program,
            worker_id="last",
            run_types=frozenset(RUN_TYPES),
            max_jobs=100,
            lease_duration=timedelta(minutes=1),
        )
        [result] = storm.work.claim_jobs([request])
        assert isinstance(result, ClaimResult)
        if not result.claims:
            return
        done = Completion(None, 0, None)
        storm.work.finish_jobs(
            [FinishRequest(storm.program, each.job.job_id, each.lease_token, done) for each in result.claims]
        )


def rage(world: World, seconds: float) -> Counter[str]:
    """A storm, looked at all the time; what its calls were told."""
    storm = Storm(world)
    before = [snapshot(world.sql)]

    def watch() -> None:
        now = snapshot(world.sql)
        wrong = violations(now) + changes(before[0], now)
        assert not wrong, "\n".join(wrong)
        before[0] = now

    storm.run(seconds, watch)
    assert not storm.unexpected, storm.unexpected
    watch()
    Duties(world.database, storm.signals).fill()
    now = snapshot(world.sql)
    idle = [text for text in idle_places(now, now) if "held" in text]
    assert not idle, idle
    require_all_ends(storm)
    watch()
    require_no_loose_end(before[0])
    return storm.told


def require_no_loose_end(now: Snapshot) -> None:
    """AssertionError where a job that waits for nothing that failed has not ended."""
    hopeless = {"FAILED", "CANCELLED"}
    stuck = {job_id for job_id, job in now.jobs.items() if job["end_time"] is None}
    for job_id in stuck:
        waits = {other for other in now.waits_for.get(job_id, set()) if other in now.jobs}
        reasons = [now.jobs[other]["status"] in hopeless or other in stuck for other in waits]
        assert any(reasons), f"{now.jobs[job_id]} never ended"
    assert not now.untold


def test_all_holds_at_every_moment_of_a_storm(stored_world: World) -> None:
    told = rage(stored_world, 5)
    assert told.keys() <= {"OK", "TransactionRolledBack", *TO_BE_EXPECTED}, told
    assert told["OK"] > 100


@pytest.mark.long
def test_all_holds_at_every_moment_of_a_long_storm(stored_world: World) -> None:
    told = rage(stored_world, 40)
    assert told.keys() <= {"OK", "TransactionRolledBack", *TO_BE_EXPECTED}, told
