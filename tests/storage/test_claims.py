"""Claims: each job to one worker, in order, with all that belongs to it, and nobody waits."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest

from jobs_service.core.claim_jobs import ANSWER_BYTES
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.caller import Caller, Role
from jobs_service.model.errors import CallerUnknown, RoleRequired
from jobs_service.model.job import JobStatus, JobView, RunType
from jobs_service.model.requests import GetRequest
from jobs_service.model.retry import RetryPolicy
from jobs_service.model.work import ClaimResult
from jobs_service.storage.claims import FIRST
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed, claimed_ids, flood, new_insert, put, queue
from tests.support.world import World

ALL = frozenset(RunType)
HOUR = timedelta(hours=1)


def test_a_claim_writes_all_that_belongs_to_it(stored_world: World) -> None:
    dataset, worker = stored_world.dataset(), stored_world.service_user()
    [job_id] = flood(stored_world, dataset, 1, run_timeout=HOUR, retry_policy=RetryPolicy())
    [[claim]] = claimed(stored_world, claim_request(worker, worker_id="w7"))
    job = claim.job
    assert (job.status, job.attempt, claim.attempt, job.version) == (JobStatus.RUNNING, 1, 1, 2)
    assert job.run_parameters == {"file_path": "a"}
    assert job.start_time == job.update_time
    assert claim.lease_expire_time == job.lease_expire_time == job.update_time + timedelta(seconds=60)
    assert [(one.number, one.worker_id, one.end_time) for one in job.attempts] == [(1, "w7", None)]
    assert queue(stored_world) == {}
    lease = stored_world.sql.execute(
        """SELECT job_id, claim, attempt, lease_token, worker_id, dataset_id, limited, start_time,
                  lease_expire_time, lease_duration, run_deadline FROM job_leases"""
    ).fetchall()
    assert lease == [
        (
            job_id,
            1,
            1,
            claim.lease_token,
            "w7",
            dataset,
            False,
            job.update_time,
            claim.lease_expire_time,
            timedelta(seconds=60),
            job.update_time + HOUR,
        )
    ]
    row = stored_world.sql.execute("SELECT lease_token, claims FROM jobs").fetchone()
    assert row == (claim.lease_token, 1)
    [event] = stored_world.events(job_id)
    assert {
        name: event[name] for name in ("type", "actor_id", "actor_soeid", "reason", "run_type", "time")
    } == {
        "type": "CLAIMED",
        "actor_id": worker.user_id,
        "actor_soeid": worker.soeid,
        "reason": "w7",
        "run_type": "IMPORT",
        "time": job.update_time,
    }
    assert (event["status_before"], event["status_after"]) == ("PENDING", "RUNNING")


def test_a_claim_shows_the_job_as_it_is_read_afterwards(stored_world: World) -> None:
    dataset, admin = stored_world.dataset(), stored_world.user(Role.ADMIN)
    flood(stored_world, dataset, 1, description="d", external_id="e", source_commit_id="a" * 64)
    [[claim]] = claimed(stored_world, claim_request(admin))
    with stored_world.database.one_statement() as tx:
        [found] = tx.jobs.find([GetRequest(admin.caller, claim.job.job_id)], JobView.FULL)
    names = ("job_id", "status", "dataset_name", "description", "external_id", "source_commit_id", "version")
    assert found.job is not None
    assert [getattr(claim.job, name) for name in names] == [getattr(found.job, name) for name in names]


def test_no_lease_goes_beyond_the_run_timeout(stored_world: World) -> None:
    worker = stored_world.service_user()
    flood(stored_world, stored_world.dataset(), 1, run_timeout=timedelta(seconds=30))
    [[claim]] = claimed(stored_world, claim_request(worker, lease_duration=HOUR))
    assert claim.lease_expire_time == claim.job.update_time + timedelta(seconds=30)


def test_the_order_is_priority_then_turn_then_job_id(stored_world: World) -> None:
    one, two = stored_world.dataset(), stored_world.dataset()
    worker = stored_world.service_user()
    first = [new_insert(one) for _ in range(3)]
    second = [new_insert(two) for _ in range(2)]
    urgent = [new_insert(one, priority=100), new_insert(two, priority=50)]
    for batch in (first, second, urgent):
        put(stored_world, batch)
    [ids] = claimed_ids(stored_world, claim_request(worker, 10))
    wanted = [*urgent, first[0], second[0], first[1], second[1], first[2]]
    assert ids == [one.job_id for one in wanted]


def test_the_order_is_the_same_over_several_run_types(stored_world: World) -> None:
    worker, dice = stored_world.service_user(), random.Random(4)
    datasets = [stored_world.dataset() for _ in range(5)]
    for _ in range(60):
        put(
            stored_world,
            [
                new_insert(dice.choice(datasets), dice.choice(list(RunType)), priority=dice.choice([0, 0, 3]))
                for _ in range(dice.randint(1, 4))
            ],
        )
    wanted = list(queue(stored_world))
    got: list[UUID] = []
    while len(got) < len(wanted):
        [ids] = claimed_ids(stored_world, claim_request(worker, dice.choice([1, 1, 2, 7]), ALL))
        got += ids
        assert ids
    assert got == wanted


def test_several_workers_that_claim_at_once_share_in_their_order(stored_world: World) -> None:
    worker = stored_world.service_user()
    ids = flood(stored_world, stored_world.dataset(), 6)
    got = claimed_ids(stored_world, *(claim_request(worker, n, worker_id=f"w{n}") for n in (1, 2, 1, 9)))
    assert got == [ids[:1], ids[1:3], ids[3:4], ids[4:]]
    leases = stored_world.sql.execute("SELECT worker_id FROM job_leases ORDER BY job_id").fetchall()
    assert [row[0] for row in leases] == ["w1", "w2", "w2", "w1", "w9", "w9"]


def test_only_run_types_that_are_asked_for_and_granted_are_claimed(stored_world: World) -> None:
    dataset = stored_world.dataset()
    jobs = {kind: flood(stored_world, dataset, 1, run_type=kind)[0] for kind in RunType}
    granted = {RunType.IMPORT, RunType.SAMPLING}
    worker = stored_world.service_user(granted)
    asked = {RunType.SAMPLING, RunType.EXPLORATION}
    [result] = WorkerService(stored_world.database, Signals()).claim_jobs([claim_request(worker, 9, asked)])
    assert isinstance(result, ClaimResult)
    assert [claim.job.job_id for claim in result.claims] == [jobs[RunType.SAMPLING]]
    assert result.not_granted == {RunType.EXPLORATION}


def test_who_may_not_claim_is_refused_and_spoils_nobody(stored_world: World) -> None:
    flood(stored_world, stored_world.dataset(), 2)
    admin, user, bare = stored_world.user(Role.ADMIN), stored_world.user(), stored_world.service_user([])
    service = stored_world.service_user()
    requests = [claim_request(someone) for someone in (user, bare, service, admin)]
    of_nobody = claim_request(service)
    object.__setattr__(of_nobody, "caller", Caller("zz99999", 2**40))
    on_behalf = claim_request(service)
    object.__setattr__(on_behalf, "caller", service.for_user(user))
    worker_service = WorkerService(stored_world.database, Signals())
    results = worker_service.claim_jobs([*requests, of_nobody, on_behalf])
    kinds = [type(result) for result in results]
    assert kinds == [RoleRequired, RoleRequired, ClaimResult, ClaimResult, CallerUnknown, RoleRequired]
    assert [isinstance(result, ClaimResult) and len(result.claims) for result in results[2:4]] == [1, 1]
    assert isinstance(results[1], RoleRequired)
    assert results[1].metadata == {"required_role": "service", "run_type": "IMPORT"}


def test_a_grant_that_is_taken_away_counts_for_the_next_claim(stored_world: World) -> None:
    worker = stored_world.service_user()
    flood(stored_world, stored_world.dataset(), 2)
    assert len(claimed(stored_world, claim_request(worker))[0]) == 1
    stored_world.sql.execute("DELETE FROM run_type_grants")
    with pytest.raises(RoleRequired):
        claimed(stored_world, claim_request(worker))


def test_an_answer_holds_so_many_bytes_and_at_least_one_job(stored_world: World) -> None:
    worker, heard = stored_world.service_user(), list[frozenset[RunType]]()
    signals = Signals()
    signals.ready.subscribe(lambda news: heard.append(frozenset(news)))
    flood(stored_world, stored_world.dataset(), 7, payload_bytes=ANSWER_BYTES // 2)
    flood(stored_world, stored_world.dataset(), 1, payload_bytes=3 * ANSWER_BYTES, priority=9)
    service = WorkerService(stored_world.database, signals)
    results = service.claim_jobs([claim_request(worker, 4), claim_request(worker, 4)])
    assert [isinstance(one, ClaimResult) and (len(one.claims), one.more) for one in results] == [
        (1, True),
        (2, True),
    ]
    # Whoever asked meanwhile has found nothing: those left are told of.
    assert heard == [{RunType.IMPORT}]


def test_nobody_waits_for_a_job_or_a_row_of_the_queue_that_is_held(stored_world: World) -> None:
    worker = stored_world.service_user()
    ids = flood(stored_world, stored_world.dataset(), 6)
    others = flood(stored_world, stored_world.dataset(), 1, run_type=RunType.SAMPLING, priority=1)
    with connect(stored_world.database_url) as holder, holder.transaction():
        holder.execute("SELECT 1 FROM jobs WHERE job_id = ANY(%s) FOR UPDATE", ([ids[0], ids[2]],))
        holder.execute("SELECT 1 FROM job_queue WHERE job_id = ANY(%s) FOR UPDATE", ([ids[1], others[0]],))
        assert claimed_ids(stored_world, claim_request(worker)) == [[ids[3]]]
        # The only one that would be first is held: there is another, all the same.
        assert claimed_ids(stored_world, claim_request(worker, 1, ALL)) == [[ids[4]]]
        assert claimed_ids(stored_world, claim_request(worker, 9, ALL)) == [[ids[5]]]
        assert claimed_ids(stored_world, claim_request(worker, 9, ALL)) == [[]]
    assert claimed_ids(stored_world, claim_request(worker, 9, ALL)) == [[*others, *ids[:3]]]


def test_a_claim_of_several_run_types_locks_only_what_it_gets(stored_world: World) -> None:
    everything, importer = stored_world.service_user(), stored_world.service_user([RunType.IMPORT])
    flood(stored_world, stored_world.dataset(), 1, run_type=RunType.SAMPLING, priority=1)
    [other] = flood(stored_world, stored_world.dataset(), 1)
    with stored_world.database.transaction() as tx:
        everywhere = dict.fromkeys(ALL, FIRST)
        tx.queue.claim(everywhere, [claim_request(everything, 1, ALL)], answer_bytes=ANSWER_BYTES)
        assert claimed_ids(stored_world, claim_request(importer)) == [[other]]


def test_what_is_in_the_queue_and_no_longer_pending_is_passed_over(stored_world: World) -> None:
    worker = stored_world.service_user()
    ids = flood(stored_world, stored_world.dataset(), 4)
    # As release 0.1.0 cancels: it knows no queue.
    stored_world.set_status(ids[0], JobStatus.CANCELLED)
    stored_world.sql.execute("DELETE FROM jobs WHERE job_id = %s", (ids[1],))
    assert claimed_ids(stored_world, claim_request(worker)) == [[ids[2]]]
    assert claimed_ids(stored_world, claim_request(worker, 5, ALL)) == [[ids[3]]]


def test_a_job_claimed_again_has_another_token_and_shows_the_attempts_before(stored_world: World) -> None:
    worker = stored_world.service_user()
    [job_id] = flood(stored_world, stored_world.dataset(), 1)
    [[first]] = claimed(stored_world, claim_request(worker))
    stored_world.sql.execute(
        """INSERT INTO job_attempts SELECT job_id, claim, attempt, lease_token, worker_id, start_time, now(),
                  'FAILED', 'ValueError', 'no such column', true, true FROM job_leases"""
    )
    stored_world.sql.execute("DELETE FROM job_leases")
    stored_world.set_status(job_id, JobStatus.PENDING)
    with stored_world.database.transaction() as tx:
        tx.queue.enqueue([job_id])
    [[second]] = claimed(stored_world, claim_request(worker, worker_id="w2"))
    assert second.lease_token != first.lease_token
    assert [(one.number, one.worker_id, one.outcome) for one in second.job.attempts] == [
        (1, "w1", "FAILED"),
        (2, "w2", None),
    ]
    error = second.job.attempts[0].error
    assert error is not None
    assert (error.type, error.message, error.retryable) == ("ValueError", "no such column", True)


def _claim_at_once(world: World, threads: int, made: list[UUID], kinds: list[RunType]) -> list[UUID]:
    """Claim from several threads until all is claimed; returns what they got."""
    worker, start, lock, left = world.service_user(), threading.Barrier(threads), threading.Lock(), set(made)

    def work(number: int) -> list[UUID]:
        dice, got = random.Random(number), list[UUID]()
        start.wait()
        # What the others hold at this moment is passed over: nothing found is no end.
        while left:
            request = claim_request(worker, dice.choice([1, 2, 10, 50]), kinds, worker_id=f"w{number}")
            [ids] = claimed_ids(world, request)
            got += ids
            with lock:
                left.difference_update(ids)
        return got

    with ThreadPoolExecutor(threads) as pool:
        return [job_id for ids in pool.map(work, range(threads)) for job_id in ids]


@pytest.mark.parametrize("kinds", [[RunType.IMPORT], list(RunType)], ids=["one run type", "all run types"])
def test_eight_workers_at_once_lose_no_job_and_get_none_twice(
    stored_world: World, kinds: list[RunType]
) -> None:
    for _ in range(3):
        made = [
            job_id
            for kind in kinds
            for _ in range(4)
            for job_id in flood(stored_world, stored_world.dataset(), 200 // len(kinds), run_type=kind)
        ]
        assert sorted(_claim_at_once(stored_world, 8, made, kinds)) == sorted(made)
        rows = stored_world.sql.execute(
            "SELECT count(*), count(DISTINCT job_id), count(DISTINCT lease_token) FROM job_leases"
        ).fetchone()
        assert rows is not None
        assert len(set(rows)) == 1
