"""The core as the loop sees it: what counts while a list runs."""

import asyncio
import threading
from typing import Any
from unittest.mock import Mock

import pytest

from jobs_service.model.errors import Overloaded
from jobs_service.transport.batcher import Limits
from jobs_service.transport.call import Call
from jobs_service.transport.operations import Operations
from tests.support.batching import PATIENCE, on_a_loop


@on_a_loop
async def test_a_list_counts_until_its_thread_has_ended_whether_its_caller_waits_or_not() -> None:
    began, may_end = threading.Event(), threading.Event()

    def list_jobs(request: Any, *, seconds: float) -> Any:
        began.set()
        assert may_end.wait(PATIENCE)
        return request

    operations = Operations(
        Mock(list_jobs=list_jobs),
        Mock(),
        limits=Limits(waiting=1),
        list_threads=1,
        read_seconds=PATIENCE,
        abort=Mock(),
    )
    request: Any = "all"  # stands for the page too
    leaving = asyncio.create_task(operations.list(request, Call("ListJobs")))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    leaving.cancel()
    await asyncio.wait([leaving])
    with pytest.raises(Overloaded):
        await operations.list(request, Call("ListJobs"))
    may_end.set()
    while True:
        try:
            assert await operations.list(request, Call("ListJobs")) is request
            break
        except Overloaded:
            await asyncio.sleep(0.01)
    await operations.close()
