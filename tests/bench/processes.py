"""How much CPU and memory processes have taken, from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return what a process has used, all its threads and the children that it has waited for included."""
    # Behind the name, which may hold anything: utime, stime, cutime, cstime are the fields 14 to 17.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def family_cpu_seconds(pid: int) -> float:
    """Return what a process and its children have used; those that have ended count in the parent."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) + sum(_or_nothing(int(child)) for child in children)


def _or_nothing(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def resident_mib(pid: int) -> float:
    """Return how much memory a process has."""
    [line] = [row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
