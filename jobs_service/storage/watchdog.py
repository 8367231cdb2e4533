"""Ends waits for a database that has stopped answering without closing its connections.

Timeouts within Postgres need a Postgres that runs, those of TCP a network that is cut. A server that
is frozen, or whose disk hangs, would keep a thread of ours for ever. And no limit within Postgres ends
a COMMIT that waits for a synchronous standby: the server is asked to cancel first, or each that we give
up would leave one of its processes waiting.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import psycopg
from sqlalchemy import Connection

_POLL_SECONDS = 0.25
_CANCEL_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Watch:
    """A connection in use until a moment of the monotonic clock. shut: it was for too long.

    canceller: has asked the server to cancel what runs on it, or is just doing so.
    """

    driver: psycopg.Connection
    until: float
    shut: bool = False
    canceller: threading.Thread | None = None


class Watchdog:
    """Ends the use of a connection that is in use for too long; whoever waits on it gets an error.

    It asks the server to cancel a second before the time is up, and then shuts the socket.
    """

    def __init__(self, on_shut: Callable[[], None] = lambda: None) -> None:
        self._on_shut = on_shut
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, connection: Connection, seconds: float) -> Iterator[Watch]:
        """Give the block these seconds. A connection that was cancelled is not used again."""
        # The driver's connection, now: asked of a connection that was lost it would connect anew.
        driver = cast(psycopg.Connection, connection.connection.driver_connection)
        watch = Watch(driver, time.monotonic() + seconds)
        with self._lock:
            # First: where no thread can be started nothing is used that nobody watches.
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                thread.start()
                self._thread = thread
            self._watches.add(watch)
        self._work.set()
        try:
            yield watch
        finally:
            # Under the lock: a connection that is back in the pool must not be shut any more.
            with self._lock:
                self._watches.discard(watch)
            if watch.canceller is not None:
                # A cancel that comes late would hit whoever has the connection next.
                connection.invalidate()

    def shut_all(self) -> None:
        """Shut every connection that is in use now."""
        self._shut_those_until(math.inf)

    def _watch(self) -> None:
        while True:
            self._work.wait()
            now = time.monotonic()
            self._cancel_those_until(now + _CANCEL_SECONDS)
            self._shut_those_until(now)
            time.sleep(_POLL_SECONDS)

    def _cancel_those_until(self, moment: float) -> None:
        with self._lock:
            for watch in self._watches:
                if watch.until <= moment and watch.canceller is None:
                    # A thread of its own: a server that is frozen takes the call and never answers.
                    watch.canceller = threading.Thread(target=_cancel, args=(watch.driver,), daemon=True)
                    # Without a thread for it there is no cancel, and its socket is shut all the same.
                    with contextlib.suppress(RuntimeError):
                        watch.canceller.start()

    def _shut_those_until(self, moment: float) -> None:
        with self._lock:
            for watch in [watch for watch in self._watches if watch.until <= moment]:
                self._watches.discard(watch)
                watch.shut = True
                self._on_shut()
                _shut(watch.driver)
            if not self._watches:
                self._work.clear()


def _cancel(driver: psycopg.Connection) -> None:
    with contextlib.suppress(OSError, psycopg.Error):
        driver.cancel_safe(timeout=_CANCEL_SECONDS)


def _shut(driver: psycopg.Connection) -> None:
    # The driver keeps its descriptor: it finds the end of the stream there, and closes it itself.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(driver.fileno())) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)
