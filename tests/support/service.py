"""The real command, running as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "jobs_service"]
START_SECONDS = 60
STOP_SECONDS = 40


def clean_environment() -> dict[str, str]:
    """The environment without any setting of the service, or of the tests' own gRPC."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JOBS_", "GRPC_"))}


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until the condition is truthy and return it; AssertionError after the seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return result


class ServiceProcess:
    """`jobs-service serve` with these settings, its stdout and stderr in files.

    The listener takes a free port unless the settings say otherwise. The process leads a process
    group of its own, so that a test can signal all of it. prefix: a program, with its arguments, that
    becomes the command.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str], *arguments: str, prefix: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "stderr"
        self.out_file = folder / "stdout"
        environment = clean_environment() | {"JOBS_LISTEN": "127.0.0.1:0"} | dict(settings)
        with self.log_file.open("ab") as log, self.out_file.open("ab") as out:
            self.process = subprocess.Popen(
                [*prefix, *COMMAND, "serve", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                process_group=0,
            )

    def started(self) -> "ServiceProcess":
        """Wait until it serves, and return it; AssertionError with its log if it ends instead."""
        wait_until(lambda: self.lines("serving") or self.process.poll() is not None, START_SECONDS, "start")
        assert self.process.poll() is None, self.log_file.read_text()
        return self

    @property
    def target(self) -> str:
        """HOST:PORT of the listener."""
        serving = self.lines("serving")[-1]
        return f"{serving['host']}:{serving['port']}"

    def lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """The complete JSON lines of its log, those with this message if one is given."""
        whole = self.log_file.read_text().rpartition("\n")[0].splitlines()
        parsed = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in parsed if message is None or line["message"] == message]

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)


def run_command(
    *arguments: str, settings: Mapping[str, str], seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run jobs-service with these arguments and settings to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environment() | dict(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
