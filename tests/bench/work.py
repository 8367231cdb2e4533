"""How fast jobs are handed out and taken in, and how soon one that was created is picked up."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import struct_pb2

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.model.caller import Level
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.load import channel_to, serving
from tests.support.client import Client
from tests.support.postgres import running_postgres
from tests.support.worker import Worker, completion, item, lease_of, new_service
from tests.support.world import KEY, World

CONNECTIONS = (4, 8)
BATCH = 1000
CLAIM = 100
_WAIT_SECONDS = 20


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    jobs: int = 20_000
    datasets: int = 20
    pick_ups: int = 300


DEFAULT = Plan()
QUICK = Plan(jobs=1_000, datasets=3, pick_ups=20)


@dataclass(frozen=True)
class Site:
    """Two services on one Postgres, who may create there, and who may work."""

    targets: Sequence[str]
    datasets: Sequence[int]
    owner_token: str
    program_token: str

    def worker(self, place: int = 0) -> Worker:
        """With a connection of its own, to this service."""
        return Worker(channel_to(self.targets[place]), self.program_token)

    def client(self, place: int = 0) -> Client:
        """The same for the owner."""
        return Client(channel_to(self.targets[place]), self.owner_token)


@contextmanager
def site(folder: Path, plan: Plan) -> Iterator[Site]:
    """Services that end with the block."""
    with running_postgres(folder / "postgres") as postgres:
        url = postgres.new_database()
        world = World(url)
        datasets = [world.dataset() for _ in range(plan.datasets)]
        owner = world.user(grants=dict.fromkeys(datasets, Level.WRITE))
        tokens = make_token(KEY, owner.soeid), make_token(KEY, new_service(world).soeid)
        world.close()
        settings = service_settings(url, folder)
        with serving(folder, settings) as first, serving(folder, settings) as second:
            yield Site([first.target, second.target], datasets, *tokens)
            assert [service.stop() for service in (first, second)] == [0, 0]


def fill(made: Site, jobs: int) -> float:
    """Create so many, a thousand a call; returns the jobs a second."""
    client, began = made.client(), time.perf_counter()
    parameters = struct_pb2.Struct()
    parameters.update({"file_path": "landing/a.csv"})
    for start in range(0, jobs, BATCH):
        requests = [
            jobs_pb2.CreateJobRequest(
                dataset_id=made.datasets[number % len(made.datasets)],
                run_type=jobs_pb2.RUN_TYPE_IMPORT,
                run_parameters=parameters,
            )
            for number in range(start, min(jobs, start + BATCH))
        ]
        client.call("BatchCreateJobs", jobs_pb2.BatchCreateJobsRequest(requests=requests))
    return jobs / (time.perf_counter() - began)


def drain(made: Site, jobs: int, connections: int) -> float:
    """Claim and complete all of them; returns the jobs a second."""
    workers = [made.worker() for _ in range(connections)]
    began = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        done = sum(threads.map(_until_empty, workers))
    seconds = time.perf_counter() - began
    assert done == jobs, f"{done} of {jobs} jobs were done"
    return jobs / seconds


def _until_empty(worker: Worker) -> int:
    done = 0
    while claims := worker.claims(CLAIM):
        items = [item(completion(lease_of(claim))) for claim in claims]
        results = worker.call("FinishJobs", workers_pb2.FinishJobsRequest(items=items)).results
        done += sum(result.HasField("job") for result in results)
    return done


def pick_ups(made: Site, number: int, *, claims_at: int) -> list[float]:
    """Seconds from the answer to a create at the first service to that of a claim that waited, sorted."""
    client, worker = made.client(), made.worker(claims_at)
    found = []
    for _ in range(number):
        claimed: list[tuple[float, workers_pb2.Claim]] = []
        thread = threading.Thread(target=_claim_one, args=(worker, claimed))
        thread.start()
        # It waits by then; nothing tells from outside.
        time.sleep(0.03)
        client.create(dataset_id=made.datasets[0])
        created = time.perf_counter()
        thread.join(_WAIT_SECONDS + 5)
        moment, claim = claimed[0]
        # The claim may be answered before the create is.
        found.append(max(0.0, moment - created))
        worker.complete(lease_of(claim))
    return sorted(found)


def _claim_one(worker: Worker, claimed: list[tuple[float, workers_pb2.Claim]]) -> None:
    claims = worker.claims(wait=_WAIT_SECONDS)
    claimed += [(time.perf_counter(), claim) for claim in claims]


def measured(plan: Plan, folder: Path) -> Iterator[str]:
    """The figures, a line each."""
    with site(folder, plan) as made:
        for connections in CONNECTIONS:
            created = fill(made, plan.jobs)
            rate = drain(made, plan.jobs, connections)
            yield (
                f"{plan.jobs:,} jobs: created {created:,.0f}/s ({BATCH} a call), claimed {CLAIM} at a time"
                f" and completed {rate:,.0f}/s over {connections} connections to one service"
            )
        for place, where in enumerate(("the same service", "another replica")):
            seconds = pick_ups(made, plan.pick_ups, claims_at=place)
            p50, p99 = (seconds[int(len(seconds) * part)] * 1000 for part in (0.5, 0.99))
            yield (
                f"from the answer to CreateJob to that of ClaimJobs, waiting at {where}:"
                f" p50 {p50:.1f} ms, p99 {p99:.1f} ms"
            )
