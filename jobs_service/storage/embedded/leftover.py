"""The server of an owner that was killed: still ending, long gone, or its process id now somebody else's."""

import logging
import os
import select
import signal
from pathlib import Path

from jobs_service.storage.embedded.errors import EmbeddedPostgresError
from jobs_service.storage.embedded.launch import Launcher

_log = logging.getLogger(__name__)

# The second is for a server that does not end in time; its files are then recovered at the next start.
_SIGNALS = ((signal.SIGINT, 30), (signal.SIGQUIT, 10))


def read_pid_file(cluster: Path) -> list[str]:
    """The lines of postmaster.pid, of which the first is the process id, the eighth the state; or none."""
    try:
        return (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def end_leftover(cluster: Path, launcher: Launcher) -> None:
    """End the server of an earlier owner, and remove a postmaster.pid that names another program.

    The caller holds the lock of the data folder, so no living owner can have a server here. Raises
    EmbeddedPostgresError where the server does not end.
    """
    lines = read_pid_file(cluster)
    if not lines or not lines[0].isdecimal():
        return
    pid = int(lines[0])
    try:
        process = os.pidfd_open(pid)
    except OSError:
        process = None  # no process, or a thread of one
    try:
        if process is not None and _is_server_of(cluster, pid, launcher):
            _end(process, pid)
    finally:
        if process is not None:
            os.close(process)
    _remove_misleading_file(cluster, pid)


def _is_server_of(cluster: Path, pid: int, launcher: Launcher) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != "postgres":
            return False
    except OSError:
        return False
    # The working folder holds through mount namespaces and renames. Only its own user is sure to be let see
    # it: root in a container often has no CAP_SYS_PTRACE.
    working_folder = launcher.run("stat", "-L", "-c", "%d:%i", f"/proc/{pid}/cwd")
    ours = cluster.stat()
    return working_folder.output.strip() == f"{ours.st_dev}:{ours.st_ino}"


def _end(process: int, pid: int) -> None:
    for number, seconds in _SIGNALS:
        _log.warning("sending %s to the Postgres that an earlier owner left, process %d", number.name, pid)
        try:
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return
        if _ended(process, seconds):
            return
    raise EmbeddedPostgresError(f"Postgres of an earlier run, process {pid}, does not end; end it by hand.")


def _ended(process: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _remove_misleading_file(cluster: Path, pid: int) -> None:
    # Postgres refuses for ever while the process id in the file is in use, be it by another program, a thread
    # or a zombie. One that is not in use it deals with itself, and it learns more from the file than we do.
    if read_pid_file(cluster)[:1] == [str(pid)] and Path(f"/proc/{pid}").exists():
        _log.warning("removing postmaster.pid: process %d is not a Postgres of this folder", pid)
        (cluster / "postmaster.pid").unlink(missing_ok=True)
