"""Load at little cost: callers that each send the next call when they have the answer to the last one."""

import heapq
import itertools
import select
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench.http2 import BadAnswer, Connection, Headers, header_block
from tests.bench.http2 import field as trailer

OK = "0"
CONNECTIONS = 4
"""As a handful of client programs has; a lone caller has one."""
_PATIENCE = 20.0


@dataclass
class Measured:
    """What callers saw in a while. seconds: of the while. answered: seconds of each call, by status."""

    seconds: float = 0.0
    answered: dict[str, list[float]] = field(default_factory=dict)
    own_cpu: float = 0.0

    @property
    def calls(self) -> int:
        """Calls that were served."""
        return len(self.answered.get(OK, ()))

    @property
    def rate(self) -> float:
        """Served calls a second."""
        return self.calls / self.seconds

    @property
    def refused(self) -> Counter[str]:
        """How many calls ended with each other status."""
        return Counter({status: len(times) for status, times in self.answered.items() if status != OK})

    def percentile(self, percent: int, status: str = OK) -> float:
        """Of the calls' milliseconds, the one below which this percentage is."""
        times = self.answered.get(status, [])
        if len(times) < 2:
            return 1000 * sum(times)
        return 1000 * statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Calls:
    """Calls of one method. bodies: messages with their prefix. once: each may be sent only once."""

    method: str
    bodies: Sequence[bytes]
    token: str | None = None
    once: bool = False

    def headers(self, target: str) -> Headers:
        """What each call begins with."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self.method),
            (":authority", target),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "30S"),
        ]
        return headers + ([("authorization", f"Bearer {self.token}")] if self.token else [])


class RanOut(Exception):
    """There are no calls left that have not been sent."""


class Load:
    """Callers on a few connections, one call of each at a time. obedient: wait as pushback says."""

    def __init__(
        self,
        target: str,
        calls: Calls,
        *,
        callers: int,
        connections: int = CONNECTIONS,
        obedient: bool = False,
    ) -> None:
        self._callers = callers
        self._obedient = obedient
        self._block = header_block(calls.headers(target))
        self._bodies = iter(calls.bodies) if calls.once else _again_and_again(calls.bodies)
        self._connections = [Connection(target) for _ in range(min(callers, connections))]
        self._poll = select.epoll()
        self._by_fd = {connection.socket.fileno(): connection for connection in self._connections}
        self._begun: dict[tuple[Connection, int], float] = {}
        self._later: list[tuple[float, int, Connection]] = []
        self._numbers = itertools.count()
        self._more = True
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Begin all callers; at the end let them have their last answers."""
        try:
            for number in range(self._callers):
                self._begin(self._connections[number % len(self._connections)])
            for connection in self._connections:
                connection.flush()
            yield self
            self._more = False
            until = time.perf_counter() + _PATIENCE
            while self._begun:
                if time.perf_counter() > until:
                    raise BadAnswer(f"{len(self._begun)} calls have no answer")
                self._turn(Measured(), 0.1)
        finally:
            for connection in self._connections:
                connection.close()
            self._poll.close()

    def run(self, seconds: float, each_turn: Callable[[], object] = lambda: None) -> Measured:
        """Go on for so long, and return what was answered in that time."""
        measured = Measured()
        cpu, began = time.process_time(), time.perf_counter()
        until = began + seconds
        while (now := time.perf_counter()) < until:
            self._turn(measured, until - now)
            each_turn()
        measured.seconds = time.perf_counter() - began
        measured.own_cpu = time.process_time() - cpu
        return measured

    def _turn(self, measured: Measured, wait: float) -> None:
        if self._later:
            wait = min(wait, max(0.0, self._later[0][0] - time.perf_counter()))
        for fd, _ in self._poll.poll(min(wait, 0.25)):
            connection = self._by_fd[fd]
            ended = connection.receive()
            now = time.perf_counter()
            for stream, trailers in ended:
                self._end(connection, measured, trailers, now, now - self._begun.pop((connection, stream)))
            connection.flush()
        now = time.perf_counter()
        while self._later and self._later[0][0] <= now:
            connection = heapq.heappop(self._later)[2]
            self._begin(connection)
            connection.flush()

    def _end(
        self, connection: Connection, measured: Measured, trailers: bytes, now: float, took: float
    ) -> None:
        status = (trailer(trailers, b"grpc-status") or b"none").decode()
        measured.answered.setdefault(status, []).append(took)
        pushback = trailer(trailers, b"grpc-retry-pushback-ms") if self._obedient and status != OK else None
        if pushback is not None:
            heapq.heappush(self._later, (now + int(pushback) / 1000, next(self._numbers), connection))
        else:
            self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        if self._more:
            body = next(self._bodies, None)
            if body is None:
                raise RanOut
            self._begun[connection, connection.call(self._block, body)] = time.perf_counter()


def _again_and_again(bodies: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from bodies
