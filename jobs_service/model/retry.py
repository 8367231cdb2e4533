"""When a job is tried again: how often, and how long it waits before."""

import random
from dataclasses import dataclass
from datetime import timedelta

DEFAULT_MAX_ATTEMPTS = 3
MAX_RELEASES = 100
"""In a row; the next one costs an attempt."""
MAX_TOTAL_ATTEMPTS = 10_000
"""Of one job, however often it is retried: each may leave a row that is kept as long as the job."""
DEFAULT_RUN_TIMEOUT = timedelta(hours=24)
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off: initial after the first attempt, multiplied after each, never over longest."""

    initial: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(minutes=10)
    multiplier: float = 2.0

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after this attempt (1, 2, ...): up to a fifth more or less than planned.

        Jobs that failed together must not all come back together.
        """
        longest = self.longest / self.initial if self.initial else 0.0
        # In floats a large power overflows; min would have taken the other anyway.
        try:
            factor = min(self.multiplier ** (attempt - 1), longest)
        except OverflowError:
            factor = longest
        return self.initial * factor * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
