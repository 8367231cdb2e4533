"""A worker that goes on whatever happens, and writes down what it is about to say and what it was told.

Arguments: NAME TARGET TOKEN LOG SEED. What it does with a job, the job itself says in its run_parameters: see
Plan. It runs until it is killed, or until SIGTERM, after which it claims nothing more.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from jobs.v1 import jobs_pb2
from tests.e2e.load import channel_to, outcome_of
from tests.support.worker import (
    Lease,
    Worker,
    completion,
    failure,
    giving_back,
    lease_of,
    refusal_in,
)

LEASE_SECONDS = 5.0
BEAT_SECONDS = 1.5
SHORT = (0.05, 0.25)
LONG = (2.0, 7.0)
CALL_SECONDS = 3.0
RUN_TYPES = (jobs_pb2.RUN_TYPE_IMPORT, jobs_pb2.RUN_TYPE_EXPLORATION)


class Log:
    """A line for each thing, in the file before anything else happens: it outlives kill -9."""

    def __init__(self, path: Path, worker: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._worker = worker

    def write(self, what: str, lease: Lease | None = None, **more: Any) -> None:
        """claimed, sent, done, refused or stopped."""
        line = {
            "what": what,
            "time": time.time(),
            "worker": self._worker,
            **(lease._asdict() if lease else {}),
        }
        os.write(self._file, json.dumps(line | more).encode() + b"\n")


class Leases:
    """What this worker has, renewed by a thread of its own, so that no job's work is in its way."""

    def __init__(self, worker: Worker, log: Log) -> None:
        self._worker, self._log = worker, log
        self._held: dict[Lease, threading.Event] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def hold(self, lease: Lease) -> threading.Event:
        """Renew it from now on. The event is set when the job is to be stopped."""
        stop = self._held[lease] = threading.Event()
        return stop

    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        self._held.pop(lease, None)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            held = list(self._held.items())
            try:
                told = (
                    self._worker.heartbeat(*(lease for lease, _ in held), lease=LEASE_SECONDS) if held else []
                )
            except grpc.RpcError:
                continue
            for (lease, stop), state in zip(held, told, strict=True):
                if state != "lease_expire_time" and lease in self._held:
                    self._log.write("stopped", lease, state=state)
                    stop.set()


class Running:
    """Claims jobs, works, and says how they ended, again until there is an answer."""

    def __init__(self, worker: Worker, log: Log, seed: int) -> None:
        self._worker, self._log = worker, log
        self._random = random.Random(seed)
        self._leases = Leases(worker, log)
        self.stopping = threading.Event()

    def run(self) -> None:
        """Until told to stop."""
        while not self.stopping.is_set():
            try:
                claims = self._worker.claims(
                    self._random.choice((1, 1, 2, 4)),
                    lease=LEASE_SECONDS,
                    wait=1,
                    run_types=RUN_TYPES,
                )
            except grpc.RpcError as error:
                self._log.write("unclaimed", outcome=outcome_of(error))
                time.sleep(0.1)
                continue
            taken = [(lease_of(claim), claim) for claim in claims]
            stops = {lease: self._leases.hold(lease) for lease, _ in taken}
            for lease, claim in taken:
                self._log.write("claimed", lease, attempt=claim.attempt)
            for lease, claim in taken:
                self._work(lease, stops[lease], claim.attempt, dict(claim.job.run_parameters))

    def _work(self, lease: Lease, stop: threading.Event, attempt: int, plan: dict[str, Any]) -> None:
        took = self._random.uniform(*(LONG if self._random.random() < 0.02 else SHORT))
        if not stop.wait(took):
            request = self._request(lease, attempt, str(plan.get("plan", "ok")))
            kind = type(request).__name__.removesuffix("JobRequest").lower()
            self._log.write("sent", lease, kind=kind)
            while not self._said(lease, kind, request):
                time.sleep(0.1)
        self._leases.drop(lease)

    def _request(self, lease: Lease, attempt: int, plan: str) -> Any:
        if self._random.random() < 0.03:
            return giving_back(lease)
        if plan == "doomed":
            return failure(lease, type="Doomed", non_retryable=True)
        if plan == "flaky" and attempt == 1:
            return failure(lease, type="Flaky", retry_delay=0.2)
        return completion(lease, {"by": self._worker.name, "token": lease.lease_token})

    def _said(self, lease: Lease, kind: str, request: Any) -> bool:
        """Whether there is an answer."""
        try:
            answer, reason = self._say(kind, request)
        except grpc.RpcError as error:
            answer, reason = None, outcome_of(error).removeprefix("FAILED_PRECONDITION ")
        if reason in {None, "LEASE_LOST"}:
            status = answer.job.status if answer else None
            will_retry = getattr(answer, "will_retry", kind == "release")
            self._log.write(
                "refused" if reason else "done",
                lease,
                kind=kind,
                status=status,
                will_retry=will_retry,
            )
            return True
        self._log.write("unanswered", lease, kind=kind, outcome=reason)
        return False

    def _say(self, kind: str, request: Any) -> tuple[Any, str | None]:
        """By a call of its own, or as an item of FinishJobs: the answer, and why it was refused."""
        if self._random.random() < 0.7:
            return self._worker.call(f"{kind.capitalize()}Job", request), None
        [result] = self._worker.finish(request)
        refusal = refusal_in(result)
        return result, refusal and refusal.reason


def main() -> None:
    """Run."""
    name, target, token, log, seed = sys.argv[1:]
    worker = Worker(channel_to(target), token, name, seconds=CALL_SECONDS)
    running = Running(worker, Log(Path(log), name), int(seed))
    signal.signal(signal.SIGTERM, lambda *_: running.stopping.set())
    running.run()


if __name__ == "__main__":
    main()
