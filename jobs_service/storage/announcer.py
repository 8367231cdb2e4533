"""Tells the other replicas what this one did, and hears what they did: LISTEN and NOTIFY.

A hint and no more: whoever waits looks by himself now and then. Nothing here is part of a transaction that
writes: NOTIFY takes a lock at COMMIT that all of them would queue for.
"""

import json
import logging
import os
import random
import select
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import psycopg

from jobs_service.model.job import RunType
from jobs_service.storage.engine import Limits, new_engine, normalized_url

CHANNEL = "jobs_v1"
_EVERY_SECONDS = 0.02
"""Between two messages. What happens meanwhile goes with the next one."""
_IDS = 200
"""Of one message: it may have 8,000 bytes."""
_MOST_IDS = 4_000
"""That are kept to be told; beyond it all may have been revoked."""
_RETRY_SECONDS = (0.5, 15.0)
_CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """What to call with other replicas' news: run types, job ids, and () where news may have been missed.

    Called on the announcer's thread; must return at once.
    """

    ready: Callable[[Collection[RunType]], None]
    revoked: Callable[[Collection[UUID]], None]
    anything: Callable[[Collection[object]], None]


class _Outbox:
    """What is still to be told. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: set[RunType] = set()
        self._revoked: set[UUID] = set()
        self._all_revoked = False

    def add(self, ready: Collection[RunType] = (), revoked: Collection[UUID] = ()) -> None:
        with self._lock:
            self._ready.update(ready)
            self._revoked.update(revoked)
            if len(self._revoked) > _MOST_IDS:
                self._revoked.clear()
                self._all_revoked = True

    def take(self) -> dict[str, Any]:
        """As much as one message holds; empty if there is nothing."""
        with self._lock:
            message: dict[str, Any] = {}
            if self._ready:
                message["ready"] = sorted(self._ready)
                self._ready.clear()
            if self._all_revoked:
                message["all"] = True
                self._all_revoked = False
            elif self._revoked:
                message["revoked"] = [self._revoked.pop().hex for _ in range(min(_IDS, len(self._revoked)))]
            return message


class Announcer:
    """One connection and one thread. Without a database it tries again and again, and holds up nobody.

    url: leads to the server itself, through no pooler. Raises ValueError where it is none.
    """

    def __init__(self, url: str) -> None:
        self._engine = new_engine(normalized_url(url), pool_size=1, limits=Limits(10, 1), pooled=False)
        self._name = uuid.uuid4().hex
        self._outbox = _Outbox()
        self._heard: Heard | None = None
        self._stop = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._failures = 0

    def ready(self, run_types: Collection[RunType]) -> None:
        """Tell the others. Returns at once; for any thread."""
        self._outbox.add(ready=run_types)
        self._wake()

    def revoked(self, job_ids: Collection[UUID]) -> None:
        """Tell the others. Returns at once; for any thread."""
        self._outbox.add(revoked=job_ids)
        self._wake()

    def start(self, heard: Heard) -> None:
        """Begin to tell and to hear."""
        self._heard = heard
        self._thread.start()

    def close(self) -> None:
        """End it, or leave it to the end of the process if it is just waiting for the database."""
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        self._engine.dispose()

    def _wake(self) -> None:
        # Full is awake too.
        with suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connected() as connection:
                    self._serve(connection)
            except Exception as error:
                self._failures += 1
                if self._failures == 1:
                    _log.warning("other replicas are not heard", extra={"fields": {"error": repr(error)}})
            if not self._stop.is_set():
                self._stop.wait(self._pause())

    def _pause(self) -> float:
        first, longest = _RETRY_SECONDS
        planned: float = min(longest, first * 2 ** min(self._failures, 10))
        # Replicas that lost the same server must not come back together.
        return planned * random.uniform(0.5, 1)  # noqa: S311 - no secret

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection]:
        pooled = self._engine.raw_connection()
        connection = cast(psycopg.Connection, pooled.driver_connection)
        pooled.detach()
        try:
            connection.autocommit = True
            connection.add_notify_handler(lambda notify: self._hear(notify.payload))
            yield connection
        finally:
            connection.close()

    def _serve(self, connection: psycopg.Connection) -> None:
        connection.execute(f"LISTEN {CHANNEL}".encode())
        if self._failures:
            _log.info("other replicas are heard again")
            self._failures = 0
        # What happened before is not told any more.
        self._to(lambda heard: heard.anything(()))
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._stop.is_set():
            ready = {descriptor for descriptor, _ in poll.poll()}
            if connection.fileno() in ready:
                self._receive(connection)
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
                self._send(connection)

    def _receive(self, connection: psycopg.Connection) -> None:
        connection.pgconn.consume_input()
        while notify := connection.pgconn.notifies():
            self._hear(notify.extra.decode())

    def _send(self, connection: psycopg.Connection) -> None:
        while (message := self._outbox.take()) and not self._stop.is_set():
            payload = json.dumps({"from": self._name, **message}, separators=(",", ":"))
            try:
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
            except Exception:
                self._put_back(message)
                raise
            time.sleep(_EVERY_SECONDS)

    def _put_back(self, message: dict[str, Any]) -> None:
        self._outbox.add(
            [RunType(word) for word in message.get("ready", ())],
            [UUID(text) for text in message.get("revoked", ())],
        )
        self._wake()

    def _hear(self, payload: str) -> None:
        try:
            message = json.loads(payload)
            if message["from"] == self._name:
                return
            ready = [RunType(word) for word in message.get("ready", ())]
            revoked = [UUID(text) for text in message.get("revoked", ())]
        except (ValueError, TypeError, KeyError, AttributeError):
            # Of a newer release, or of whoever else uses the channel.
            self._to(lambda heard: heard.anything(()))
            return
        self._to(lambda heard: heard.ready(ready))
        self._to(lambda heard: heard.revoked(revoked))
        if message.get("all"):
            self._to(lambda heard: heard.anything(()))

    def _to(self, tell: Callable[[Heard], None]) -> None:
        if self._heard is not None:
            tell(self._heard)
