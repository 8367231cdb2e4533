"""Everything at once: services, a Postgres, workers and callers, and faults that befall them by a seed."""

import bisect
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from jobs.v1 import jobs_pb2
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import backends, free_port
from tests.e2e.load import channel_to, family, outcome_of, postmaster, running
from tests.support.client import Client, rich_error
from tests.support.postgres import PostgresServer, connect
from tests.support.service import ServiceProcess, clean_environment, wait_until
from tests.support.work_history import Line, Told, lines_of
from tests.support.world import KEY, User

WORKERS = 6
SERVERS = 2
STOPPED_SECONDS = 8.0
RECOVERY_SECONDS = 30.0
WINDOW_SECONDS = 3.0
PLANS = ("ok", "ok", "ok", "ok", "ok", "ok", "flaky", "flaky", "doomed")
_CREATORS = 4


class Arena:
    """Two services and six workers on a Postgres, each of which can be hit, and is set up again."""

    def __init__(self, postgres: PostgresServer, folder: Path, seed: int) -> None:
        self.url = postgres.new_database()
        self.random = random.Random(seed)
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.targets = [f"127.0.0.1:{free_port()}" for _ in range(SERVERS)]
        self.faults: list[tuple[float, str]] = []
        self._postgres, self._folder = postgres, folder
        self._servers: list[ServiceProcess] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._numbers = iter(range(1, 10_000))

    def start(self, token: str) -> None:
        """Start everything."""
        self._token = token
        self._servers = [self._serve(target) for target in self.targets]
        for server in self._servers:
            server.started()
        self._workers = [self._work() for _ in range(WORKERS)]

    def _serve(self, target: str) -> ServiceProcess:
        folder = self._folder / f"service-{next(self._numbers)}"
        folder.mkdir()
        return ServiceProcess(folder, service_settings(self.url, folder) | {"JOBS_LISTEN": target})

    def _work(self) -> "subprocess.Popen[bytes]":
        number = next(self._numbers)
        # Each has a favourite, and goes to the other when that is away.
        target = "ipv4:" + ",".join(self.targets[:: 1 if number % 2 else -1])
        name, log = f"worker-{number}", self.logs / f"{number}.log"
        command = [
            sys.executable,
            "-m",
            "tests.e2e.chaos_worker",
            name,
            target,
            self._token,
            str(log),
            str(number),
        ]
        with (self.logs / f"{number}.stderr").open("wb") as errors:
            return subprocess.Popen(command, env=clean_environment(), stderr=errors, process_group=0)

    def faults_of_a_run(self, rounds: int) -> list[Callable[[], str]]:
        """Each of the faults so many times, in orders of the seed's."""
        kinds = [
            self.kill_worker,
            self.kill_server,
            self.kill_postgres,
            self.stop_worker,
            self.stop_server,
            self.end_sessions,
        ]
        return [fault for _ in range(rounds) for fault in self.random.sample(kinds, len(kinds))]

    def hit(self, fault: Callable[[], str]) -> None:
        """Let it happen, and note when."""
        began = time.time()
        self.faults.append((began, fault()))

    def kill_worker(self) -> str:
        """Two of them: another takes their place."""
        for place in self.random.sample(range(WORKERS), 2):
            self._workers[place].kill()
            self._workers[place].wait(10)
            self._workers[place] = self._work()
        return "kill -9 of 2 workers"

    def kill_server(self) -> str:
        """And start it again."""
        place = self.random.randrange(SERVERS)
        self._servers[place].kill()
        self._servers[place] = self._serve(self.targets[place]).started()
        return "kill -9 of a server"

    def kill_postgres(self) -> str:
        """And start it again."""
        folder = {"JOBS_DATA_DIR": str(self._folder / "postgres")}
        processes = family(postmaster(folder))
        os.kill(postmaster(folder), signal.SIGKILL)
        wait_until(self._postgres.postgres.exited, 10, "Postgres is dead")
        wait_until(lambda: not running(processes), 20, "all of it")
        self._postgres.postgres.restart()
        return "kill -9 of Postgres"

    def stop_worker(self) -> str:
        """For longer than its leases last."""
        self._stop_for_a_while(self.random.choice(self._workers).pid)
        return f"SIGSTOP of a worker for {STOPPED_SECONDS:.0f} s"

    def stop_server(self) -> str:
        """For longer than leases last."""
        self._stop_for_a_while(self.random.choice(self._servers).process.pid)
        return f"SIGSTOP of a server for {STOPPED_SECONDS:.0f} s"

    def _stop_for_a_while(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        over = time.monotonic() + STOPPED_SECONDS
        try:
            wait_until(lambda: time.monotonic() > over, STOPPED_SECONDS + 5, "the time is over")
        finally:
            os.kill(pid, signal.SIGCONT)

    def end_sessions(self) -> str:
        """Every session of the services."""
        pids = backends(self.url)
        with connect(self.url) as sql:
            for pid in pids:
                sql.execute("SELECT pg_terminate_backend(%s)", (pid,))
        return f"pg_terminate_backend of {len(pids)} sessions"

    def lines(self) -> list[Line]:
        """What the workers have written so far."""
        return lines_of(self.logs)

    def end(self) -> None:
        """Stop the workers first, then the services, which end well."""
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(30) for worker in self._workers] == [0] * WORKERS
        assert [server.stop() for server in self._servers] == [0] * SERVERS

    def kill_all(self) -> None:
        """Whatever still runs."""
        for process in [*self._workers, *(server.process for server in self._servers)]:
            if process.poll() is None:
                process.kill()
                process.wait(10)


@contextmanager
def arena(postgres: PostgresServer, folder: Path, seed: int) -> Iterator[Arena]:
    """One that leaves no process behind."""
    made = Arena(postgres, folder, seed)
    try:
        yield made
    finally:
        made.kill_all()


@dataclass
class Callers:
    """Creators and a canceller, who go on until they are answered. told: what they were told."""

    arena: Arena
    owner: User
    datasets: Sequence[int]
    seed: int
    told: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        token = make_token(KEY, self.owner.soeid)
        order = ("ipv4:" + ",".join(self.arena.targets), "ipv4:" + ",".join(reversed(self.arena.targets)))
        self._channels = [channel_to(order[number % 2]) for number in range(_CREATORS + 1)]
        self._clients = [Client(channel, token) for channel in self._channels]
        self._threads = ThreadPoolExecutor(_CREATORS + 2)
        self._done = threading.Event()

    def create(self, number: int, *, a_second: float) -> None:
        """Create so many jobs, evenly; returns when all are acknowledged."""
        shares = [number // _CREATORS] * _CREATORS
        list(self._threads.map(self._share, range(_CREATORS), shares, [a_second / _CREATORS] * _CREATORS))

    def begin(self, number: int, *, a_second: float) -> "Future[None]":
        """The same, beside whatever comes."""
        return self._threads.submit(self.create, number, a_second=a_second)

    def _share(self, place: int, number: int, a_second: float) -> None:
        chance = random.Random(self.seed * 100 + place)
        began = time.monotonic()
        for count in range(number):
            due = began + count / a_second
            if due > time.monotonic():
                self._done.wait(due - time.monotonic())
            while not self._create(self._clients[place], chance):
                pass

    def _create(self, client: Client, chance: random.Random) -> bool:
        plan, there = chance.choice(PLANS), list(self.told.created)[-200:]
        depends_on = chance.sample(there, min(len(there), 2)) if chance.random() < 0.15 else []
        request: dict[str, Any] = {
            "dataset_id": chance.choice(self.datasets),
            "run_type": chance.choice((jobs_pb2.RUN_TYPE_IMPORT, jobs_pb2.RUN_TYPE_EXPLORATION)),
            "run_parameters": {"file_path": "landing/a.csv", "plan": plan},
            "request_id": str(uuid.uuid4()),
            "priority": chance.choice((0, 0, 0, 10)),
            "max_attempts": 50,
            "depends_on_job_ids": depends_on,
        }
        made = self._until_answered(lambda: client.create(**request), "DEPENDENCY_NOT_SATISFIABLE")
        if isinstance(made, str):
            return False
        self.told.created[made.job.job_id] = plan
        return True

    def cancel_now_and_then(self) -> None:
        """Cancel some, old and new, until told to stop."""
        self._cancelling = self._threads.submit(self._cancel_on)

    def _cancel_on(self) -> None:
        chance, client = random.Random(self.seed), self._clients[_CREATORS]
        while not self._done.wait(0.5):
            there = list(self.told.created)[-60:]
            if there:
                self._cancel(client, chance.choice(there))

    def _cancel(self, client: Client, job_id: str) -> None:
        if job_id in self.told.asked:
            return
        self.told.asked.add(job_id)
        status = self._until_answered(lambda: client.cancel(job_id, "chaos"), "JOB_NOT_CANCELLABLE")
        if isinstance(status, str) and status != "CANCELLED":
            self.told.too_late[job_id] = status
        else:
            self.told.cancelled.add(job_id)

    def _until_answered(self, call: Callable[[], Any], accepted: str) -> Any:
        """What it answers in the end; of a refusal that is accepted the status of the job."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if outcome_of(error) == f"FAILED_PRECONDITION {accepted}":
                    return rich_error(error).metadata["status"]
                time.sleep(0.05)

    def stop(self) -> None:
        """Cancel no more."""
        self._done.set()
        self._cancelling.result(60)

    def close(self) -> None:
        """Close the connections."""
        self._done.set()
        self._threads.shutdown(cancel_futures=True)
        for channel in self._channels:
            channel.close()


def recoveries(faults: Sequence[tuple[float, str]], lines: Sequence[Line], *, quiet: float) -> Iterator[str]:
    """Each fault with the jobs a second before it, and how soon and how far they came back.

    quiet: until when there was none.
    """
    done = sorted(float(line["time"]) for line in lines if line["what"] == "done")
    last = done[-1]

    def rate(began: float, ended: float) -> float:
        return (bisect.bisect(done, ended) - bisect.bisect(done, began)) / (ended - began)

    usual = rate(quiet - 10, quiet)
    nexts = [moment for moment, _ in faults[1:]] + [last]
    for (moment, name), following in zip(faults, nexts, strict=True):
        watched = min(RECOVERY_SECONDS, following - moment)
        steps = range(int(4 * max(0.0, watched - WINDOW_SECONDS)) + 1)
        afters = [WINDOW_SECONDS + step / 4 for step in steps]
        rates = [rate(moment + after - WINDOW_SECONDS, moment + after) for after in afters]
        low = rates.index(min(rates))
        again = (
            after for after, found in zip(afters[low:], rates[low:], strict=True) if found >= 0.95 * usual
        )
        soon = next((f"after {after:.1f} s" for after in again), "not")
        before, best = rate(moment - 5, moment), max(rates[low:])
        yield (
            f"{name}: {before:.0f} jobs/s before ({usual:.0f} undisturbed), {rates[low]:.0f} at the lowest;"
            f" 95 % of the undisturbed rate again {soon} within {watched:.0f} s;"
            f" best then {best:.0f} ({best / usual if usual else 0:.0%})"
        )
