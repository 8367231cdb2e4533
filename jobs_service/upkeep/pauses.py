"""Notices when this process did not run: stopped, swapped out, or its event loop held up."""

import asyncio
import time
from collections.abc import Callable

_TICK_SECONDS = 0.5
_LONGEST_SECONDS = 3.0
"""From one tick to the next: what a loaded event loop takes at most. The shortest lease is 5 seconds."""


class Pauses:
    """Ticks on the event loop, which is what takes in the heartbeats. Times are the clock's, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last_tick = clock()
        self._last_pause = float("-inf")

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            self.tick()
            await asyncio.sleep(_TICK_SECONDS)

    def tick(self) -> None:
        """Note that the process runs now, and whether it did not before."""
        now = self.clock()
        if now - self._last_tick > _LONGEST_SECONDS:
            self._last_pause = now
        self._last_tick = now

    def any_since(self, moment: float) -> bool:
        """Whether the process has paused since then, or pauses now, as far as the event loop can tell."""
        return self._last_pause >= moment or self.clock() - self._last_tick > _LONGEST_SECONDS
