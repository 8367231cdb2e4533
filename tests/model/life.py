"""A seeded life of many jobs: random calls of the core, each answer held against the reference."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from jobs_service.core.access_service import AccessService
from jobs_service.core.job_service import JobService
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.access import OPERATOR
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import JobsError
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest, CreateResult, RetryRequest
from jobs_service.model.retry import RetryPolicy
from jobs_service.model.work import (
    ClaimRequest,
    ClaimResult,
    Completion,
    Failure,
    FinishRequest,
    FinishResult,
    Heartbeat,
    HeartbeatRequest,
    Release,
)
from tests.model.comparison import differences, idle_places, untold
from tests.model.duties import Duties
from tests.model.invariants import Snapshot, changes, snapshot, violations
from tests.model.reference import COMPLETED, OK, RUNNING, TERMINAL, Known, Reference
from tests.support.world import World

AT_ONCE = RetryPolicy(initial=timedelta(0), longest=timedelta(0))
LATER = RetryPolicy(initial=timedelta(hours=1), longest=timedelta(hours=1))
RUN_TYPES = (RunType.IMPORT, RunType.EXPLORATION)
MOST_JOBS = 60
PRIORITIES = (0, 0, 0, 1, 50, 100)


class Life:
    """One database, one seed. `step` does something random, and checks everything."""

    def __init__(self, world: World, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = world
        signals = Signals()
        self.ready: set[RunType] = set()
        self.revoked: set[UUID] = set()
        signals.ready.subscribe(self.ready.update)
        signals.revoked.subscribe(self.revoked.update)
        self.jobs, self.work = JobService(world.database, signals), WorkerService(world.database, signals)
        self.duties = Duties(world.database, signals)
        self.access = AccessService(world.database, signals).changes(by=OPERATOR)
        self.datasets = [world.dataset() for _ in range(3)]
        self.owner = world.user(grants=dict.fromkeys(self.datasets, Level.WRITE)).caller
        program = world.user(Role.SERVICE)
        for run_type in RUN_TYPES:
            world.access.grant_run_type(program.soeid, run_type)
        self.program = program.caller
        self.reference = Reference()
        # Every token that was ever given, with its job.
        self.tokens: list[tuple[UUID, UUID]] = []
        self.done: Counter[str] = Counter()
        self.last = ""
        self.before: Snapshot = snapshot(world.sql)
        self.purged = False
        self.actions: list[tuple[Callable[[], None], int]] = [
            (self.create, 10),
            (self.claim, 10),
            (self.finish, 14),
            (self.heartbeat, 4),
            (self.expire, 4),
            (self.cancel, 3),
            (self.retry, 4),
            (self.come_due, 4),
            (self.limit, 2),
            (self.purge, 1),
            (self.use_up_releases, 1),
        ]

    def step(self) -> None:
        """Do something, and check everything."""
        [action] = self.random.choices(
            [action for action, _ in self.actions], [weight for _, weight in self.actions]
        )
        self.ready.clear()
        self.revoked.clear()
        self.purged = False
        self.last = action.__name__
        action()
        self.duties.tell_dependants()
        self.check()

    def create(self) -> None:
        """Create some jobs, one after the other in one call."""
        if len(self.reference.jobs) >= MOST_JOBS:
            return
        new = [self._new_job() for _ in range(self.random.choice((1, 1, 2, 5)))]
        expected = [self.reference.creatable(job.depends_on, keep_waiting=job.keep_waiting) for job in new]
        results = self.jobs.create_jobs([CreateRequest(self.owner, job) for job in new])
        for job, answer, result in zip(new, expected, results, strict=True):
            self._same("create", answer, result)
            if isinstance(result, CreateResult):
                self.reference.jobs[result.job.job_id] = _known(result.job.job_id, job)

    def _new_job(self) -> NewJob:
        there = list(self.reference.jobs)
        depends_on = self.random.sample(there, min(len(there), self.random.choice((0, 0, 0, 1, 2, 4))))
        if self.random.random() < 0.02:
            depends_on.append(uuid4())
        return NewJob(
            dataset_id=self.random.choice(self.datasets),
            run_type=self.random.choice(RUN_TYPES),
            run_parameters={},
            payload_bytes=2,
            request_hash=b"0" * 32,
            priority=self.random.choice(PRIORITIES),
            max_attempts=self.random.choice((1, 2, 3)),
            start_delay=timedelta(hours=self.random.choice((0, 0, 0, 1))),
            run_timeout=self.random.choice((None, timedelta(minutes=5))),
            retry_policy=self.random.choice((AT_ONCE, AT_ONCE, LATER)),
            depends_on=tuple(depends_on),
            keep_waiting=self.random.random() < 0.3,
        )

    def claim(self) -> None:
        """Claim some."""
        asked = self.random.sample(RUN_TYPES, self.random.choice((1, 1, 2)))
        self._claim(frozenset(asked), self.random.choice((1, 1, 3, 10)))

    def _claim(self, asked: frozenset[RunType], most: int) -> None:
        """Claim up to so many jobs: exactly those that come next, in their order."""
        request = ClaimRequest(
            caller=self.program,
            worker_id=f"worker {self.random.randrange(5)}",
            run_types=asked,
            max_jobs=most,
            lease_duration=timedelta(minutes=self.random.choice((1, 10))),
        )
        expected = self._next(asked)[:most]
        [result] = self.work.claim_jobs([request])
        assert isinstance(result, ClaimResult), result
        claimed = [claim.job.job_id for claim in result.claims]
        assert claimed == expected, f"claimed {claimed}, not {expected}"
        for claim in result.claims:
            self.reference.claimed(claim.job.job_id, claim.lease_token)
            known = self.reference.jobs[claim.job.job_id]
            assert (claim.attempt, claim.job.version) == (known.attempt, known.version)
            self.tokens.append((claim.job.job_id, claim.lease_token))
            self.done["claimed"] += 1

    def _next(self, run_types: frozenset[RunType]) -> list[UUID]:
        """Who may be claimed, the next one first."""
        rows = [
            row
            for row in self.before.queue.values()
            if row["ready"] and not row["held"] and row["run_type"] in run_types
        ]
        rows.sort(key=lambda row: (row["neg_priority"], row["turn"], row["job_id"]))
        return [UUID(row["job_id"]) for row in rows]

    def finish(self) -> None:
        """End some claims, by tokens of now and of long ago."""
        requests, expected = [], []
        for job_id, token in self._some_tokens():
            outcome = self._outcome()
            requests.append(FinishRequest(self.program, job_id, token, outcome))
            expected.append(
                self.reference.finish(
                    _KINDS[type(outcome)],
                    job_id,
                    token,
                    for_good=isinstance(outcome, Failure) and outcome.non_retryable,
                )
            )
        if not requests:
            return
        results = self.work.finish_jobs(requests)
        for request, (answer, will_retry), result in zip(requests, expected, results, strict=True):
            self._same("finish", answer, result)
            if isinstance(result, FinishResult):
                assert result.will_retry == will_retry, f"will_retry of {request}"
                assert result.job.status == self.reference.jobs[request.job_id].status

    def _some_tokens(self) -> list[tuple[UUID, UUID]]:
        """Of claims that go on, mostly; some of the past, and some that are another job's."""
        current = [(job.job_id, job.token) for job in self.reference.jobs.values() if job.token]
        picked = self.random.sample(current, min(len(current), self.random.choice((1, 1, 2, 4))))
        if self.tokens and self.random.random() < 0.4:
            picked.append(self.random.choice(self.tokens))
        if self.tokens and self.random.random() < 0.05:
            picked.append((self.random.choice(self.tokens)[0], self.random.choice(self.tokens)[1]))
        self.random.shuffle(picked)
        return picked

    def _outcome(self) -> Completion | Failure | Release:
        match self.random.choices(("complete", "fail", "release"), (5, 4, 2))[0]:
            case "complete":
                return Completion({"rows": self.random.randrange(9)}, 10, None)
            case "fail":
                delay = self.random.choice((None, timedelta(0), timedelta(hours=1)))
                return Failure("ValueError", "bad row", self.random.random() < 0.3, delay)
            case _:
                return Release(timedelta(hours=self.random.choice((0, 0, 1))))

    def heartbeat(self) -> None:
        """Renew some leases."""
        tokens, beats, expected = sorted(set(self._some_tokens())), [], []
        for job_id, token in tokens:
            progress = {"percent": float(self.random.randrange(3))} if self.random.random() < 0.5 else None
            beats.append(Heartbeat(job_id, token, progress))
            expected.append(self.reference.heartbeat(job_id, token, progress))
        if not beats:
            return
        [results] = self.work.heartbeat_jobs(
            [HeartbeatRequest(self.program, tuple(beats), timedelta(minutes=1))]
        )
        assert not isinstance(results, JobsError), results
        assert [one.state.name for one in results] == expected, f"heartbeats of {tokens}"

    def expire(self) -> None:
        """Let leases, or the time to run, be over, and sweep."""
        running = [job for job in self.reference.jobs.values() if job.status == RUNNING]
        picked = self.random.sample(running, min(len(running), self.random.choice((1, 2, 5))))
        timed_out = self.random.random() < 0.3
        for known in picked:
            self.duties.age_lease(self.world.sql, known.job_id, timed_out=timed_out)
        self.duties.sweep()
        for known in picked:
            self.reference.expired(known.job_id, timed_out=timed_out)
            assert known.job_id in self.revoked, "nobody was told that the lease is lost"
            self.done["expired"] += 1

    def cancel(self) -> None:
        """Cancel jobs that have nothing to do with each other, in one call."""
        there = list(self.reference.jobs)
        picked = self.random.sample(there, min(len(there), self.random.choice((1, 1, 2))))
        if len(picked) == 2 and self._related(*picked):
            picked.pop()
        ran = [job_id for job_id in picked if self.reference.jobs[job_id].status == RUNNING]
        expected = [self.reference.cancel(job_id) for job_id in picked]
        results = self.jobs.cancel_jobs([CancelRequest(self.owner, job_id, "a test") for job_id in picked])
        for answer, result in zip(expected, results, strict=True):
            self._same("cancel", answer, result)
        assert self.revoked >= set(ran), "nobody was told that the lease is revoked"

    def _related(self, one: UUID, other: UUID) -> bool:
        """Whether the end of one may reach the other, or both of them a third."""
        return bool(self._reached(one) & self._reached(other))

    def _reached(self, job_id: UUID) -> set[UUID]:
        found = {job_id}
        for job in self.reference.jobs.values():
            if job_id in job.depends_on:
                found |= self._reached(job.job_id)
        return found

    def retry(self) -> None:
        """Try jobs again, mostly such as can be."""
        failed = [job.job_id for job in self.reference.jobs.values() if job.status in TERMINAL - {COMPLETED}]
        if not failed or self.random.random() < 0.1:
            failed = list(self.reference.jobs)
        for job_id in self.random.sample(failed, min(len(failed), self.random.choice((1, 2)))):
            answer = self.reference.retry(job_id)
            [result] = self.jobs.retry_jobs([RetryRequest(self.owner, job_id)])
            self._same("retry", answer, result)

    def come_due(self) -> None:
        """Let the time of some delayed jobs come, and promote."""
        waiting = [row["job_id"] for row in self.before.jobs.values() if not row["due"]]
        self._come_due(self.random.sample(waiting, min(len(waiting), self.random.choice((1, 5)))))

    def _come_due(self, picked: list[str]) -> None:
        with self.world.sql.transaction():
            for table in ("jobs", "job_queue"):
                query = f"UPDATE {table} SET available_time = now() WHERE job_id = ANY(%s::uuid[])"
                self.world.sql.execute(query.encode(), (picked,))
        self.before = snapshot(self.world.sql)
        self.duties.promote()

    def limit(self) -> None:
        """Set, change or remove the limit of a data set."""
        dataset_id = self.random.choice(self.datasets)
        self.access.set_limit(dataset_id, self.random.choice((None, 1, 2, 5)))

    def purge(self) -> None:
        """Let ended jobs become old, and delete what may go."""
        ended = [str(job.job_id) for job in self.reference.jobs.values() if job.status in TERMINAL]
        picked = self.random.sample(ended, len(ended) // 2)
        self.world.sql.execute(
            "UPDATE jobs SET end_time = end_time - interval '3 days' WHERE job_id = ANY(%s::uuid[])",
            (picked,),
        )
        self.before = snapshot(self.world.sql)
        self.duties.purge()
        self.purged = True
        left = set(snapshot(self.world.sql).jobs)
        # What was old before, and needed then, too.
        gone = [job_id for job_id in self.reference.jobs if str(job_id) not in left]
        self.done["purged"] += len(gone)
        self._require_purged(picked, gone)
        for job_id in gone:
            self.reference.delete(job_id)

    def _require_purged(self, picked: Sequence[str], gone: Sequence[UUID]) -> None:
        for known in self.reference.jobs.values():
            waited = [one for one in self.reference.waiting_on(known) if one in gone]
            assert not waited, f"{known.job_id} waits for {waited}, which were deleted"
        needed = {one for job in self.reference.jobs.values() for one in job.depends_on}
        kept = {UUID(job_id) for job_id in picked} - set(gone) - needed
        assert not kept, f"{kept} are old, and nobody needs them"

    def use_up_releases(self) -> None:
        """Let jobs have been released a hundred times."""
        for known in self.reference.jobs.values():
            if known.status == RUNNING and self.random.random() < 0.3:
                known.releases = 100
                self.world.sql.execute("UPDATE jobs SET releases = 100 WHERE job_id = %s", (known.job_id,))

    def _same(self, what: str, expected: str, result: Any) -> None:
        got = type(result).__name__ if isinstance(result, JobsError) else OK
        self.done[f"{what} {got}"] += 1
        assert got == expected, f"{what}: {result!r}, expected {expected}"

    def check(self) -> None:
        """AssertionError unless the database is like the reference, and all that must hold holds."""
        now = snapshot(self.world.sql)
        assert not now.untold, "dependants were left"
        wrong = violations(now) + changes(self.before, now, may_go=self.purged)
        assert now.jobs.keys() == {str(job_id) for job_id in self.reference.jobs}
        for known in self.reference.jobs.values():
            wrong += differences(known, now)
        wrong += idle_places(self.before, now) + untold(self.before, now, self.ready)
        self.before = now
        assert not wrong, "\n".join(wrong)

    def end(self) -> None:
        """Let everything come due and be completed: all jobs end, but those that wait for a failed one."""
        for dataset_id in self.datasets:
            self.access.set_limit(dataset_id, None)
        self.check_quietly()
        while self._do_all_that_is_ready():
            pass
        stuck = [job for job in self.reference.jobs.values() if job.status not in TERMINAL]
        assert all(self.reference.waiting_on(job) for job in stuck), f"never claimed: {stuck}"

    def _do_all_that_is_ready(self) -> bool:
        """Complete what runs, and what can; whether there was anything."""
        self._come_due([job_id for job_id, row in self.before.jobs.items() if not row["due"]])
        self.check_quietly()
        self._claim(frozenset(RUN_TYPES), 100)
        running = [(job.job_id, job.token) for job in self.reference.jobs.values() if job.token]
        done = Completion(None, 0, None)
        if running:
            self.work.finish_jobs([FinishRequest(self.program, *lease, done) for lease in running])
        for job_id, token in running:
            assert self.reference.finish("complete", job_id, token) == (OK, False)
        self.duties.tell_dependants()
        self.check_quietly()
        return bool(running)

    def check_quietly(self) -> None:
        """Check, whoever was told."""
        self.ready.update(RUN_TYPES)
        self.check()


_KINDS: dict[type, str] = {Completion: "complete", Failure: "fail", Release: "release"}


def _known(job_id: UUID, job: NewJob) -> Known:
    return Known(
        job_id=job_id,
        dataset_id=job.dataset_id,
        run_type=job.run_type,
        budget=job.max_attempts,
        max_attempts=job.max_attempts,
        depends_on=frozenset(job.depends_on),
        keep_waiting=job.keep_waiting,
    )
