"""The limit of a data set: never more running than it says, and no place is lost."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest

from jobs_service.core.signals import Signals
from jobs_service.model.caller import Level
from jobs_service.model.job import RunType
from jobs_service.model.requests import CancelRequest
from jobs_service.model.work import FinishRequest
from jobs_service.upkeep.fill_places import FillPlaces
from jobs_service.upkeep.promote_jobs import PromoteJobs
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed, claimed_ids, flood, limit, queue
from tests.support.service import wait_until
from tests.support.work import COMPLETED, Claimed, Workshop
from tests.support.world import World


def end(world: World, job_id: UUID) -> None:
    """End a job that runs, as whoever ends one does: its row, its lease, and its place to the next."""
    with world.database.transaction() as tx:
        connection, parameters = tx.queue._connection, {"job_id": job_id}
        tx.jobs.lock([job_id], wait=True)
        connection.exec_driver_sql(
            "UPDATE jobs SET status = 'COMPLETED', end_time = now() WHERE job_id = %(job_id)s", parameters
        )
        gone = connection.exec_driver_sql(
            "DELETE FROM job_leases WHERE job_id = %(job_id)s RETURNING dataset_id, limited", parameters
        )
        tx.places.fill([row.dataset_id for row in gone if row.limited])


def cancel(world: World, job_id: UUID) -> bool:
    """Cancel a job that waits, unless somebody has it by now."""
    with world.database.transaction() as tx:
        locked = tx.jobs.lock([job_id], wait=True)
        if locked.jobs[job_id].status != "PENDING":
            return False
        tx.jobs.cancel({job_id: ("us00000", None)})
        tx.places.fill(tx.queue.remove([job_id]))
        return True


def unheld(world: World) -> list[UUID]:
    return [job_id for job_id, row in queue(world).items() if not row["held"]]


def test_as_many_jobs_can_be_claimed_as_there_are_places(stored_world: World) -> None:
    limited, free = stored_world.dataset(), stored_world.dataset()
    worker = stored_world.service_user()
    limit(stored_world, limited, 2)
    ids, others = flood(stored_world, limited, 5), flood(stored_world, free, 3)
    [got] = claimed_ids(stored_world, claim_request(worker, 100))
    assert got == [ids[0], others[0], ids[1], others[1], others[2]]
    assert claimed_ids(stored_world, claim_request(worker, 100)) == [[]]
    end(stored_world, ids[1])
    assert claimed_ids(stored_world, claim_request(worker, 100)) == [[ids[2]]]


def test_a_place_goes_to_the_next_in_order_of_any_run_type(stored_world: World) -> None:
    limited, worker = stored_world.dataset(), stored_world.service_user()
    limit(stored_world, limited, 1)
    [first] = flood(stored_world, limited, 1)
    flood(stored_world, limited, 2)
    [urgent] = flood(stored_world, limited, 1, run_type=RunType.SAMPLING, priority=5)
    assert claimed_ids(stored_world, claim_request(worker, 9, list(RunType))) == [[first]]
    end(stored_world, first)
    assert unheld(stored_world) == [urgent]


def test_a_cancelled_job_gives_its_place_to_the_next(stored_world: World) -> None:
    limited = stored_world.dataset()
    limit(stored_world, limited, 1)
    ids = flood(stored_world, limited, 3)
    assert cancel(stored_world, ids[1])
    assert cancel(stored_world, ids[0])
    assert unheld(stored_world) == [ids[2]]


def test_a_limit_may_be_set_changed_and_removed_while_jobs_wait_and_run(stored_world: World) -> None:
    dataset, worker = stored_world.dataset(), stored_world.service_user()
    ids = flood(stored_world, dataset, 9)
    assert claimed_ids(stored_world, claim_request(worker, 2)) == [ids[:2]]
    limit(stored_world, dataset, 1)
    assert unheld(stored_world) == []
    limit(stored_world, dataset, 4)
    assert unheld(stored_world) == ids[2:4]
    limit(stored_world, dataset, 3)
    assert unheld(stored_world) == ids[2:3]
    limit(stored_world, dataset, None)
    assert unheld(stored_world) == ids[2:]
    rows = stored_world.sql.execute("SELECT DISTINCT limited FROM job_leases").fetchall()
    assert rows == [(False,)]


def test_a_job_whose_time_comes_takes_a_place_only_if_there_is_one(stored_world: World) -> None:
    limited = stored_world.dataset()
    limit(stored_world, limited, 1)
    flood(stored_world, limited, 3, start_delay=timedelta(hours=1))
    stored_world.sql.execute("UPDATE job_queue SET available_time = now()")
    PromoteJobs(stored_world.database, Signals()).run_once()
    assert [(row["ready"], row["held"]) for row in queue(stored_world).values()] == [
        (True, False),
        (True, True),
        (True, True),
    ]


def test_what_was_put_into_the_queue_while_the_limit_was_set_is_not_claimed_and_put_right(
    stored_world: World,
) -> None:
    dataset, worker = stored_world.dataset(), stored_world.service_user()
    ids = flood(stored_world, dataset, 3)
    # As it is where the creates, and a claim, had begun before the limit was committed.
    claimed(stored_world, claim_request(worker))
    stored_world.sql.execute("INSERT INTO dataset_limits VALUES (%s, 2)", (dataset,))
    assert claimed_ids(stored_world, claim_request(worker, 9)) == [[]]
    with stored_world.database.transaction() as tx:
        assert tx.queue_duties.tidy(100) == {dataset}
    FillPlaces(stored_world.database, Signals()).run_once()
    assert claimed_ids(stored_world, claim_request(worker, 9)) == [[ids[1]]]


def test_what_a_removed_limit_has_left_held_is_let_go(stored_world: World) -> None:
    dataset, heard = stored_world.dataset(), list[RunType]()
    limit(stored_world, dataset, 1)
    ids = flood(stored_world, dataset, 3)
    stored_world.sql.execute("DELETE FROM dataset_limits")
    signals = Signals()
    signals.ready.subscribe(heard.extend)
    FillPlaces(stored_world.database, signals).run_once()
    assert unheld(stored_world) == ids
    assert heard == [RunType.IMPORT]


def test_a_full_data_set_is_not_looked_at_again_and_again(stored_world: World) -> None:
    full, roomy = stored_world.dataset(), stored_world.dataset()
    limit(stored_world, full, 1)
    limit(stored_world, roomy, 1)
    flood(stored_world, full, 3)
    flood(stored_world, roomy, 3)
    stored_world.sql.execute("UPDATE dataset_limits SET max_running = 2 WHERE dataset_id = %s", (roomy,))
    with stored_world.database.transaction() as tx:
        assert tx.places.unfilled() == {roomy}


def test_who_fills_at_once_takes_one_after_the_other_and_gives_no_place_twice(stored_world: World) -> None:
    limited, worker = stored_world.dataset(), stored_world.service_user()
    limit(stored_world, limited, 2)
    ids = flood(stored_world, limited, 6)
    claimed(stored_world, claim_request(worker, 2))
    with ThreadPoolExecutor(1) as pool:
        with stored_world.database.transaction() as tx:
            tx.queue._connection.exec_driver_sql("DELETE FROM job_leases WHERE job_id = %s", (ids[0],))
            tx.places.fill([limited])
            other = pool.submit(end, stored_world, ids[1])
            wait_until(lambda: _waiting(stored_world), 5, "the other waits for the limit's row")
        other.result(10)
    assert unheld(stored_world) == ids[2:4]


def _waiting(world: World) -> bool:
    return (
        world.sql.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
        is not None
    )


_TAKEN = """
SELECT (SELECT count(*) FROM job_leases WHERE dataset_id = d),
       (SELECT count(*) FROM job_leases WHERE dataset_id = d)
       + (SELECT count(*) FROM job_queue WHERE dataset_id = d AND ready AND NOT held)
  FROM unnest(%s::bigint[]) d
"""


def test_limits_hold_while_jobs_are_claimed_ended_and_cancelled_at_once(stored_world: World) -> None:
    world, worker, most = stored_world, stored_world.service_user(), 3
    limited = [world.dataset() for _ in range(2)]
    for dataset in limited:
        limit(world, dataset, most)
    made = [job_id for dataset in limited for job_id in flood(world, dataset, 60)]
    left, lock, done = set(made), threading.Lock(), threading.Event()

    def work(number: int) -> None:
        dice = random.Random(number)
        while left:
            [ids] = claimed_ids(world, claim_request(worker, dice.choice([1, 2, 5])))
            dice.shuffle(ids)
            for job_id in ids:
                end(world, job_id)
            ended = set(ids)
            victim = dice.choice(made)
            if dice.random() < 0.1 and cancel(world, victim):
                ended.add(victim)
            with lock:
                left.difference_update(ended)

    def watch() -> set[tuple[int, int]]:
        with connect(world.database_url) as sql:
            seen = set()
            while not done.is_set():
                seen.update(sql.execute(_TAKEN, (limited,)).fetchall())
            return seen

    with ThreadPoolExecutor(9) as pool:
        watcher = pool.submit(watch)
        workers = [pool.submit(work, number) for number in range(8)]
        try:
            for one in workers:
                one.result(60)
        finally:
            left.clear()
            done.set()
        seen = watcher.result(10)
    assert {taken for _, taken in seen} <= set(range(most + 1))
    assert max(running for running, _ in seen) == most
    assert queue(world) == {}
    assert world.sql.execute("SELECT count(*) FROM job_leases").fetchone() == (0,)


def finish_all(shop: Workshop, claims: list[Claimed]) -> list[object]:
    asked = [FinishRequest(shop.worker.caller, one.job_id, one.token, COMPLETED) for one in claims]
    return [*shop.workers.finish_jobs(asked)]


def cancel_all(shop: Workshop, claims: list[Claimed]) -> list[object]:
    return [*shop.jobs.cancel_jobs([CancelRequest(shop.owner.caller, one.job_id, None) for one in claims])]


def sweep_all(shop: Workshop, claims: list[Claimed]) -> list[object]:
    for claim in claims:
        shop.age(claim)
    assert shop.sweep().taken_back == len(claims)
    return []


@pytest.mark.parametrize("end_all", [finish_all, cancel_all, sweep_all])
def test_who_holds_the_limit_of_a_data_set_keeps_no_job_from_ending(
    stored_world: World, end_all: Callable[[Workshop, list[Claimed]], list[object]]
) -> None:
    shop = Workshop(stored_world)
    other = stored_world.dataset()
    stored_world.access.grant(shop.owner.soeid, other, Level.WRITE)
    limit(stored_world, shop.dataset_id, 1)
    claims = [shop.running(attempts=1), shop.running(attempts=1, dataset_id=other)]
    stored_world.sql.execute("UPDATE job_leases SET limited = dataset_id <> %s", (other,))
    waiting = shop.job()
    with connect(stored_world.database_url) as filling, filling.transaction():
        filling.execute("SELECT FROM dataset_limits FOR UPDATE")
        results = end_all(shop, claims)
    assert not [one for one in results if isinstance(one, Exception)]
    for claim in claims:
        assert shop.get(claim.job_id).end_time is not None
    # Nobody has given the place to the next, until upkeep does.
    assert unheld(stored_world) == []
    FillPlaces(stored_world.database, Signals()).run_once()
    assert unheld(stored_world) == [waiting]


def test_a_change_of_the_limit_waits_for_the_end_of_a_claim_before_it_holds_the_limit(
    stored_world: World,
) -> None:
    shop = Workshop(stored_world)
    limit(stored_world, shop.dataset_id, 1)
    claim = shop.running()
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ThreadPoolExecutor(1) as thread:
        with connect(stored_world.database_url) as ending, ending.transaction():
            ending.execute("DELETE FROM job_leases WHERE job_id = %s", (claim.job_id,))
            changing = thread.submit(stored_world.access.set_limit, shop.dataset_id, 2)
            wait_until(lambda: stored_world.sql.execute(waits).rowcount, 10, "the change that waits")
            ending.execute("SELECT FROM dataset_limits FOR UPDATE NOWAIT")
        assert changing.result(10).now.max_running == 2
