"""Programs that refuse to run as root: another user for them, and folders that it can reach."""

import contextlib
import os
import pwd
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that the kernel gives to no connection.

    Whoever calls a dead server again and again from the port that it called would have it.
    """
    while True:
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", random.randrange(15_000, 32_000)))
            return int(taken.getsockname()[1])


def as_other_user() -> dict[str, Any]:
    """Arguments for subprocess that run a program as user postgres where we are root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def give(path: Path) -> None:
    """Let that user have the file or folder."""
    if user := as_other_user():
        shutil.chown(path, user["user"], user["group"])


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """An empty folder of that user; not below pytest's, which are closed to all but us."""
    with tempfile.TemporaryDirectory(prefix="jobs-tests-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        give(folder)
        yield folder
