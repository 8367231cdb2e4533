"""Where messages are converted: on the loop, or on a thread what is large."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LARGE_BYTES = 32 * 1024
"""What is larger is converted on a thread: on the loop every other call would wait for it."""


async def converted(size: int, convert: Callable[[], T]) -> T:
    """Convert here, or on a thread what is large. size: in bytes."""
    return await asyncio.to_thread(convert) if size > LARGE_BYTES else convert()
