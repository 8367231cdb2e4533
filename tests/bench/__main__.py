"""scripts/bench: measures the running command and prints how each RPC compares with an empty one."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import processes, table, work
from tests.bench.data import Data
from tests.bench.generator import CONNECTIONS, Load
from tests.bench.table import Round, Row
from tests.bench.workloads import EMPTY_BYTES, Workload, workloads
from tests.e2e.load import embedded_settings, embedded_url, postmaster, serving

CALLERS = (1, 16, 64)
# More than the fastest server gives, or the calls that can be sent once would run out.
_MOST_A_SECOND = {1: 4_000, 16: 9_000, 64: 10_000}
_WARM_UP = 0.2


@dataclass(frozen=True)
class Plan:
    """How long it all takes."""

    jobs: int
    rounds: int
    seconds: float


DEFAULT = Plan(jobs=100_000, rounds=5, seconds=0.9)
QUICK = Plan(jobs=5_000, rounds=1, seconds=0.4)


@dataclass(frozen=True)
class Servers:
    """The service and its Postgres, and the server that does nothing: addresses and process ids."""

    target: str
    pid: int
    postgres: int
    empty_target: str
    empty_pid: int


class Failed(Exception):
    """Calls that must succeed did not."""


def measure(workload: Workload, callers: int, servers: Servers, seconds: float, empty_rate: float) -> Round:
    """Run a workload once. empty_rate: of this round with as many callers; 0: this is the empty RPC."""
    target, pid = (
        (servers.empty_target, servers.empty_pid) if workload.empty else (servers.target, servers.pid)
    )
    calls = workload.calls(int((seconds + _WARM_UP) * _MOST_A_SECOND[callers]) + callers)
    with Load(target, calls, callers=callers).running() as load:
        load.run(_WARM_UP)
        server, postgres = processes.cpu_seconds(pid), processes.family_cpu_seconds(servers.postgres)
        measured = load.run(seconds)
        server = processes.cpu_seconds(pid) - server
        postgres = processes.family_cpu_seconds(servers.postgres) - postgres
    if measured.refused or not measured.calls:
        raise Failed(f"{workload.name} with {callers} callers: statuses {dict(measured.refused)}")
    return Round(
        workload=workload.name,
        callers=callers,
        calls=measured.calls,
        rate=measured.rate,
        p50=measured.percentile(50),
        p99=measured.percentile(99),
        server_cpu=server,
        postgres_cpu=postgres,
        own_cpu=measured.own_cpu,
        ratio=measured.rate / (empty_rate or measured.rate),
    )


def measure_all(plan: Plan, servers: Servers, data: Data) -> list[Row]:
    """Run every workload in every round, so that what slows the machine down slows all of them."""
    rows = workloads(data)
    rounds: dict[tuple[int, str], list[Round]] = {}
    for number in range(plan.rounds):
        for callers in CALLERS:
            empty_rate = 0.0
            for workload in rows:
                done = measure(workload, callers, servers, plan.seconds, empty_rate)
                empty_rate = done.rate if workload.empty else empty_rate
                rounds.setdefault((callers, workload.name), []).append(done)
        print(f"round {number + 1} of {plan.rounds} done", file=sys.stderr, flush=True)
    return [table.row(of_one) for of_one in rounds.values()]


@contextmanager
def running_servers(folder: Path) -> Iterator[tuple[Servers, str]]:
    """The command on its embedded Postgres, and the empty server; yields them and the database's URL."""
    settings = embedded_settings(folder)
    empty = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.empty_server"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert empty.stdout is not None
        port = empty.stdout.readline().strip()
        with serving(folder, settings) as service:
            servers = Servers(
                service.target, service.process.pid, postmaster(settings), f"127.0.0.1:{port}", empty.pid
            )
            yield servers, embedded_url(settings)
            if service.stop() != 0:
                raise Failed(service.log_file.read_text()[-2000:])
    finally:
        empty.terminate()
        empty.wait(10)
        assert empty.stdout is not None
        empty.stdout.close()


def measured(plan: Plan, folder: Path) -> list[Row]:
    """Run the servers in this folder, fill the database, measure."""
    with running_servers(folder) as (servers, url):
        data = Data(url, plan.jobs)
        try:
            return measure_all(plan, servers, data)
        finally:
            data.close()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    load = os.getloadavg()[0]
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "load_before": round(load, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: that it runs, not how fast")
    parser.add_argument("--work", action="store_true", help="only how fast jobs are claimed and completed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args(arguments)
    plan = QUICK if asked.quick else DEFAULT
    if asked.work:
        with tempfile.TemporaryDirectory(prefix="jobs-bench-") as folder:
            for line in work.measured(work.QUICK if asked.quick else work.DEFAULT, Path(folder)):
                print(line, flush=True)
        return
    here, began = machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as folder:
        rows = measured(plan, Path(folder))
    own = [item.generator_us for item in rows if item.callers == max(CALLERS)]
    print(
        f"{here['cpus']} CPUs (load {here['load_before']} before), Python {here['python']},"
        f" {plan.jobs:,} jobs, {plan.rounds} rounds of {plan.seconds} s, medians;"
        f" {time.monotonic() - began:.0f} s in all."
    )
    print(
        f"Empty RPC: {EMPTY_BYTES} bytes echoed by a bare grpc.aio server with the same options. Up to"
        f" {CONNECTIONS} connections; the load itself takes {min(own):.0f}..{max(own):.0f} us a call."
    )
    print(*table.lines(rows), sep="\n")
    if asked.json:
        asked.json.write_text(json.dumps(table.as_json(rows, here), indent=1))


if __name__ == "__main__":
    main()
