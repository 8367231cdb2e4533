"""Replicas whose clocks are an hour wrong: times, order and pages are the database's, only tokens notice."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import grpc

from jobs.v1 import jobs_pb2
from tests.conftest import service_settings
from tests.e2e.faults import Replicas, two_replicas, writer_of_a_dataset
from tests.e2e.load import channel_to, outcome_of, serving
from tests.support.client import Client
from tests.support.postgres import PostgresServer, connect
from tests.support.shifted import shifted_clock, token

REFUSED = "UNAUTHENTICATED CREDENTIALS_INVALID"
HOUR = 3600
JOBS = 12
# Without the time of its issue, so that both replicas take it.
LASTING = partial(token, good_for=2 * HOUR)


def callers(stack: ExitStack, replicas: Replicas, token_of: Callable[[str], str]) -> list[Client]:
    """A client of each replica."""
    channels = [stack.enter_context(channel_to(service.target)) for service in replicas.services]
    return [Client(channel, token_of(replicas.user.soeid)) for channel in channels]


def database_clock(url: str) -> datetime:
    """The database's clock."""
    with connect(url) as sql:
        row = sql.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def clock_of_id(job_id: str) -> datetime:
    """The time in a UUID of version 7: the clock of whoever made it."""
    return datetime.fromtimestamp((UUID(job_id).int >> 80) / 1000, UTC).replace(tzinfo=None)


def create(client: Client, replicas: Replicas, external_id: str, request_id: str) -> jobs_pb2.Job:
    """Make a job, and tell the history."""
    replicas.history.sending(request_id)
    made = client.create(dataset_id=replicas.dataset_id, external_id=external_id, request_id=request_id)
    replicas.history.created(request_id, made.job.job_id)
    return made.job


def pages_read_in_turn(clients: list[Client], external_id: str) -> list[str]:
    """The ids in the order of the list, each page asked of the other replica."""
    ids: list[str] = []
    page_token, turn = "", 0
    while not ids or page_token:
        page = clients[turn % 2].list(filter={"external_id": external_id}, page_size=5, page_token=page_token)
        ids += [job.job_id for job in page.jobs]
        page_token, turn = page.next_page_token, turn + 1
    return ids


def require_each_goes_on_with_the_others_jobs(
    url: str, clients: list[Client], replicas: Replicas, request_ids: list[str], made: list[jobs_pb2.Job]
) -> None:
    """Jobs are asked for again, read and cancelled where they were not made."""
    for number, (request_id, job) in enumerate(zip(request_ids, made, strict=True)):
        other = clients[(number + 1) % 2]
        assert create(other, replicas, job.external_id, request_id).job_id == job.job_id
        assert other.get(job.job_id).create_time == job.create_time
        replicas.history.cancelling(job.job_id)
        cancelled = other.cancel(job.job_id)
        replicas.history.cancelled(job.job_id)
        assert job.create_time.ToDatetime() < cancelled.end_time.ToDatetime() <= database_clock(url)


def test_replicas_whose_clocks_are_an_hour_fast_and_slow_serve_like_any_others(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    url, own = postgres_18.new_database(), uuid4().hex
    settings = service_settings(url, tmp_path)
    clocks = [settings | shifted_clock(tmp_path, shift) for shift in (HOUR, -HOUR)]
    with ExitStack() as stack:
        replicas = stack.enter_context(two_replicas(url, tmp_path, clocks, token_for=LASTING))
        clients = callers(stack, replicas, LASTING)
        began, request_ids = database_clock(url), [str(uuid4()) for _ in range(JOBS)]
        made = [
            create(clients[number % 2], replicas, own, request_id)
            for number, request_id in enumerate(request_ids)
        ]
        ended = database_clock(url)
        # The clocks are wrong, and show in nothing but the ids.
        skews = [round((clock_of_id(job.job_id) - began).total_seconds() / HOUR) for job in made]
        assert skews == [1, -1] * (JOBS // 2)
        times = [job.create_time.ToDatetime() for job in made]
        assert began <= times[0]
        assert times == sorted(times)
        assert times[-1] <= ended
        assert all(job.create_time == job.update_time == job.available_time for job in made)
        newest_first = [job.job_id for job in reversed(made)]
        assert pages_read_in_turn(clients, own) == newest_first
        assert pages_read_in_turn(clients[::-1], own) == newest_first
        require_each_goes_on_with_the_others_jobs(url, clients, replicas, request_ids, made)
        for load in replicas.loads:
            load.wait_for_more(30)


def status_of(target: str, bearer: str) -> str:
    """Whether a list is answered to this token."""
    with channel_to(target) as channel:
        try:
            Client(channel, bearer).list(page_size=1)
        except grpc.RpcError as error:
            return outcome_of(error)
    return "OK"


def test_tokens_are_judged_by_the_clock_of_the_service(postgres_18: PostgresServer, tmp_path: Path) -> None:
    url = postgres_18.new_database()
    user, _ = writer_of_a_dataset(url)
    settings = service_settings(url, tmp_path) | {"JOBS_JWT_LEEWAY": "300"}
    just_issued = token(user.soeid, good_for=2 * HOUR, issued=0)
    soon_over = token(user.soeid, good_for=HOUR / 2, issued=-2 * HOUR)
    long_over = token(user.soeid, good_for=-HOUR / 2, issued=-2 * HOUR)
    tokens = [just_issued, soon_over, long_over]
    fast, slow = (settings | shifted_clock(tmp_path, shift) for shift in (HOUR, -HOUR))
    with serving(tmp_path, fast) as first, serving(tmp_path, slow) as second:
        assert [status_of(first.target, bearer) for bearer in tokens] == ["OK", REFUSED, REFUSED]
        assert [status_of(second.target, bearer) for bearer in tokens] == [REFUSED, "OK", "OK"]
        assert [service.stop() for service in (first, second)] == [0, 0]
