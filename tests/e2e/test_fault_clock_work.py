"""Services and workers whose clocks are an hour wrong: leases and delays go by the database's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from jobs_service.model.caller import Level
from tests.conftest import service_settings
from tests.e2e.load import channel_to, serving
from tests.model.invariants import snapshot, violations
from tests.support.client import Client
from tests.support.postgres import PostgresServer
from tests.support.service import clean_environment, wait_until
from tests.support.shifted import shifted_clock, token
from tests.support.work_rows import expire, one, types_of_events
from tests.support.worker import NO_BACKOFF, Worker, new_service
from tests.support.world import World

HOUR = 3600
SHIFTS = (HOUR, -HOUR)
JOBS = 60
# Without the time of its issue, so that both replicas take it.
LASTING = partial(token, good_for=2 * HOUR)
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


@contextmanager
def shifted_services(url: str, folder: Path) -> Iterator[list[str]]:
    """A service that is an hour fast, and one that is an hour slow: where they listen."""
    with ExitStack() as stack:
        settings = service_settings(url, folder)
        services = [
            stack.enter_context(serving(folder, settings | shifted_clock(folder, shift))) for shift in SHIFTS
        ]
        yield [service.target for service in services]
        assert [service.stop() for service in services] == [0, 0]


def test_leases_delays_and_rescues_go_by_the_databases_clock_whatever_a_services_clock_says(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_18.new_database()
    world = World(url)
    dataset = world.dataset()
    owner, program = world.user(grants={dataset: Level.WRITE}), new_service(world)
    with shifted_services(url, tmp_path) as targets:
        for target, other in (targets, reversed(targets)):
            with channel_to(target) as channel, channel_to(other) as second:
                client = Client(channel, LASTING(owner.soeid))
                workers = [Worker(one, LASTING(program.soeid)) for one in (channel, second)]
                require_the_databases_clock(world, client, dataset, workers)
    world.close()


def require_the_databases_clock(world: World, owner: Client, dataset: int, workers: list[Worker]) -> None:
    """AssertionError unless a service and its neighbour agree on what is due and what is over."""
    worker, neighbour = workers
    kept = worker.take(owner.create(dataset_id=dataset).job.job_id)
    before = one(world.sql, _NOW)
    job_id = owner.create(dataset_id=dataset, retry_policy=NO_BACKOFF).job.job_id
    [claim] = worker.claims()
    assert before + 60 <= claim.lease_expire_time.ToNanoseconds() / 1e9 <= one(world.sql, _NOW) + 60
    assert timedelta(seconds=50) < claim.lease_duration.ToTimedelta() <= timedelta(seconds=60)
    # The sweeps of both take back what is over, and nothing else.
    expire(world.sql, job_id)
    again = neighbour.take(job_id)
    assert neighbour.heartbeat(again, kept) == ["lease_expire_time"] * 2
    # Released for half an hour: neither the one that is an hour ahead nor the other gives it out.
    neighbour.release(again, delay=HOUR / 2)
    later = owner.create(dataset_id=dataset, start_delay={"seconds": HOUR // 2}).job
    assert later.available_time.ToNanoseconds() - later.create_time.ToNanoseconds() == HOUR // 2 * 10**9
    marker = worker.take(owner.create(dataset_id=dataset, retry_policy=NO_BACKOFF).job.job_id)
    expire(world.sql, marker.job_id)
    neighbour.complete(neighbour.take(marker.job_id))
    assert [list(each.claims()) for each in workers] == [[], []]
    assert worker.complete(kept).attempts[0].end_time.ToNanoseconds() / 1e9 <= one(world.sql, _NOW)
    assert types_of_events(world.sql, kept.job_id) == ["CREATED", "CLAIMED", "COMPLETED"]
    assert violations(snapshot(world.sql)) == []


def test_workers_whose_clocks_are_wrong_do_their_jobs_like_any_others(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_18.new_database()
    world = World(url)
    dataset = world.dataset()
    owner, program = world.user(grants={dataset: Level.WRITE}), new_service(world)
    with shifted_services(url, tmp_path) as targets, channel_to(targets[0]) as channel:
        client = Client(channel, LASTING(owner.soeid))
        for number in range(JOBS):
            client.create(
                dataset_id=dataset,
                run_parameters={"file_path": "a.csv", "plan": "flaky" if number % 5 else "ok"},
            )
        bearer = LASTING(program.soeid)
        workers = [shifted_worker(tmp_path, n, targets[n % 2], bearer, SHIFTS[n // 2]) for n in range(4)]
        try:
            left = "SELECT count(*) FROM jobs WHERE status <> 'COMPLETED'"
            wait_until(lambda: one(world.sql, left) == 0, 60, "every job is done")
        finally:
            for worker in workers:
                worker.terminate()
            assert [worker.wait(20) for worker in workers] == [0] * 4
    assert violations(snapshot(world.sql)) == []
    expired = "SELECT count(*) FROM job_events WHERE type IN ('LEASE_EXPIRED', 'RUN_TIMED_OUT')"
    assert one(world.sql, expired) == 0
    world.close()


def shifted_worker(
    folder: Path, number: int, target: str, bearer: str, shift: int
) -> "subprocess.Popen[bytes]":
    """A worker whose clock is ahead by so much."""
    command = [sys.executable, "-m", "tests.e2e.chaos_worker", f"worker-{number}", target, bearer]
    environment = clean_environment() | shifted_clock(folder, shift)
    return subprocess.Popen([*command, str(folder / f"{number}.log"), str(number)], env=environment)
