"""News between replicas: two announcers on one database."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from jobs_service.model.job import RunType
from jobs_service.storage.announcer import _IDS, _MOST_IDS, CHANNEL, Announcer, Heard
from tests.support.postgres import connect
from tests.support.service import wait_until

SECONDS = 10


class Ear:
    """An announcer, and all that it heard."""

    def __init__(self, url: str) -> None:
        self.ready: list[RunType] = []
        self.revoked: set[UUID] = set()
        self.anything = 0
        self.announcer = Announcer(url)
        self.announcer.start(Heard(self.ready.extend, self.revoked.update, self._anything))

    def _anything(self, _: Collection[object]) -> None:
        self.anything += 1

    def hears(self, condition: Any, what: str) -> None:
        wait_until(condition, SECONDS, what)


@contextmanager
def ears(url: str, count: int = 2) -> Iterator[list[Ear]]:
    """Announcers that listen already."""
    made = [Ear(url) for _ in range(count)]
    try:
        for ear in made:
            ear.hears(lambda ear=ear: ear.anything, "it listens")
        yield made
    finally:
        for ear in made:
            ear.announcer.close()


def test_others_hear_what_one_tells_and_it_does_not_hear_itself(database_url: str) -> None:
    job_id = uuid4()
    with ears(database_url, 3) as (teller, *others):
        teller.announcer.ready([RunType.IMPORT, RunType.SAMPLING])
        teller.announcer.revoked([job_id])
        for other in others:
            other.hears(lambda other=other: other.revoked == {job_id}, "the job")
            assert set(other.ready) == {RunType.IMPORT, RunType.SAMPLING}
        # What another tells comes after what was told before: its own would have come by now.
        others[0].announcer.ready([RunType.EXPLORATION])
        teller.hears(lambda: teller.ready, "the other's news")
        assert (teller.ready, teller.revoked, teller.anything) == ([RunType.EXPLORATION], set(), 1)


def test_more_ids_than_a_message_holds_go_in_several(database_url: str) -> None:
    job_ids = {uuid4() for _ in range(_IDS * 3 + 1)}
    with ears(database_url) as (teller, other):
        teller.announcer.revoked(job_ids)
        other.hears(lambda: other.revoked == job_ids, "all of them")
        assert other.anything == 1


def test_of_too_many_ids_only_is_told_that_there_were_some(database_url: str) -> None:
    with ears(database_url) as (teller, other):
        teller.announcer.revoked({uuid4() for _ in range(_MOST_IDS + 1)})
        other.hears(lambda: other.anything == 2, "that all may be")
        assert other.revoked == set()


def test_what_is_told_at_once_goes_in_few_messages(database_url: str) -> None:
    messages: list[str] = []
    with ears(database_url) as (teller, other), connect(database_url) as listener:
        listener.add_notify_handler(lambda notify: messages.append(notify.payload))
        listener.execute(f"LISTEN {CHANNEL}".encode())

        def tell() -> None:
            for _ in range(250):
                teller.announcer.ready([RunType.IMPORT])

        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        teller.announcer.revoked([last := uuid4()])
        other.hears(lambda: last in other.revoked, "the last news")
        listener.execute("SELECT 1")
        assert 1 <= len(messages) < 100
        assert max(map(len, messages)) < 8000


@pytest.mark.parametrize(
    "payload", ["", "{", "[]", "null", '{"from": 1, "ready": ["DANCING"]}', '{"ready": 7}']
)
def test_a_message_of_nobody_known_wakes_everybody_and_ends_nothing(database_url: str, payload: str) -> None:
    with ears(database_url) as (teller, other), connect(database_url) as stranger:
        stranger.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
        other.hears(lambda: other.anything == 2, "that something was told")
        teller.announcer.ready([RunType.IMPORT])
        other.hears(lambda: other.ready == [RunType.IMPORT], "the next news")


def test_after_a_lost_connection_everybody_is_woken_and_news_come_again(database_url: str) -> None:
    with ears(database_url) as (teller, other), connect(database_url) as sql:
        for _ in range(2):
            before = (teller.anything, other.anything)
            sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            teller.announcer.ready([RunType.IMPORT])
            teller.hears(lambda before=before: teller.anything > before[0], "it listens again")
            other.hears(lambda before=before: other.anything > before[1], "it listens again")
            other.ready.clear()
            teller.announcer.ready([RunType.SAMPLING])
            other.hears(lambda: RunType.SAMPLING in other.ready, "news")


def test_without_a_database_it_takes_news_at_once_and_ends_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    announcer = Announcer("postgresql://nobody@127.0.0.1:1/nothing")
    announcer.start(Heard(*[lambda _: None] * 3))
    for _ in range(10_000):
        announcer.revoked([uuid4()])
    wait_until(lambda: "other replicas are not heard" in caplog.text, SECONDS, "a line in the log")
    announcer.close()
    wait_until(lambda: not announcer._thread.is_alive(), SECONDS, "its thread ends")
    assert caplog.text.count("other replicas are not heard") == 1


def test_a_url_of_no_postgres_is_refused() -> None:
    with pytest.raises(ValueError, match="not a postgresql:// URL"):
        Announcer("mysql://localhost/x")


def test_a_session_holds_no_transaction_open(database_url: str) -> None:
    with ears(database_url) as (teller, other), connect(database_url) as sql:
        teller.announcer.ready([RunType.IMPORT])
        other.hears(lambda: other.ready, "news")
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = %s"
        idle: psycopg.Cursor[Any] = sql.execute(query, ("idle in transaction",))
        assert idle.fetchone() == (0,)
