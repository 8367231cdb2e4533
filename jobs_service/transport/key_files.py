"""Files of keys and certificates, read again when they change."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs_service.transport.tokens import UnusableKey, read_file

POLL_SECONDS = 1.0
REPEAT_SECONDS = 300.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class KeyFiles:
    """Files that belong together, such as a certificate and its key.

    take: called with their contents, in order. It raises UnusableKey and changes nothing where they can't
    be used, and else returns what the log is told of them, never a secret.
    """

    what: str
    paths: Sequence[Path]
    take: Callable[[Sequence[bytes]], dict[str, object]]
    _taken: bytes = b""
    _refused: tuple[bytes, UnusableKey] | None = None
    _told: float | None = None

    @property
    def refused(self) -> bool:
        """Whether the files can't be used as they are now, and others before them are."""
        return self._refused is not None

    def load(self) -> dict[str, object]:
        """Take the files for the first time; returns what take says. Raises UnusableKey."""
        contents = [read_file(path) for path in self.paths]
        said = self.take(contents)
        self._taken = _digest(contents)
        return said

    def read(self) -> "list[bytes] | UnusableKey":
        """Return what the files hold, or why they can't be read."""
        try:
            return [read_file(path) for path in self.paths]
        except UnusableKey as error:
            return error

    def update(self, found: "list[bytes] | UnusableKey") -> None:
        """Take what was found if it is new and can be used; else go on with what was taken before."""
        digest = _digest([str(found).encode()] if isinstance(found, UnusableKey) else found)
        if digest == self._taken:
            self._refused = None
            return
        if self._refused is not None and digest == self._refused[0]:
            self._tell(self._refused[1])
            return
        said = found if isinstance(found, UnusableKey) else self._try(found)
        if isinstance(said, UnusableKey):
            self._refused, self._told = (digest, said), None
            return
        self._taken, self._refused = digest, None
        _log.info("%s read again", self.what, extra={"fields": said})

    def _try(self, contents: Sequence[bytes]) -> "dict[str, object] | UnusableKey":
        try:
            return self.take(contents)
        except UnusableKey as error:
            return error
        except Exception as error:
            # What a parser does with some file must not end the service.
            return UnusableKey(type(error).__name__)

    def _tell(self, error: UnusableKey) -> None:
        """Say so every five minutes, and not before the second look: files are replaced one by one."""
        now = time.monotonic()
        if self._told is None or now - self._told >= REPEAT_SECONDS:
            self._told = now
            fields = {"error": str(error)}
            _log.error("%s can't be used, the one before stays", self.what, extra={"fields": fields})


def _digest(contents: Sequence[bytes]) -> bytes:
    # By content, not by time or inode: a Secret that is mounted, a rename and a rewrite all look alike.
    return b"".join(hashlib.sha256(content).digest() for content in contents)


async def watch(groups: Sequence[KeyFiles]) -> None:
    """Look at the files once a second, for ever. They are read on a thread, taken on the loop."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        for group in groups:
            group.update(await asyncio.to_thread(group.read))
