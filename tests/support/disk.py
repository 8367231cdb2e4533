"""Small disks of a test's own, and what fills them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_TRIES = 1000


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size on the folder, which must be empty or not there. Skips without root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        # Lazily: what a failed test left open there must not leave the mount behind.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Ballast:
    """A file that takes what is free on a disk, to the last block."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._file = disk / "ballast"

    def fill(self) -> None:
        """Take what is free now."""
        with self._file.open("ab") as file:
            for _ in range(_TRIES):
                free = shutil.disk_usage(self._disk).free
                if not free:
                    return
                # Whoever else writes there may have taken it meanwhile: then there is less to take.
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)
        raise AssertionError(f"{free} bytes can't be taken")

    def remove(self) -> None:
        """Give it back."""
        self._file.unlink()
