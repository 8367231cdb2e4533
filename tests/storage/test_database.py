"""Transactions: what a failure of the database means, and what is said of it."""

import traceback
import uuid

import pytest
from sqlalchemy import text

from jobs_service.model.errors import DatabaseUnavailable, DeadlineExceeded
from jobs_service.model.job import NewJob, RunType
from jobs_service.storage.driver_errors import UnexpectedDatabaseError, UnusableDatabaseUrl
from jobs_service.storage.job_insert import JobInsert
from tests.support.postgres import open_database
from tests.support.world import World


def test_a_fault_that_the_database_finds_tells_no_value_of_the_row(stored_world: World) -> None:
    job = NewJob(
        dataset_id=1,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "secret"},
        payload_bytes=2,
        request_hash=b"0" * 32,
        priority=1_000,
    )

    def insert() -> None:
        with stored_world.database.transaction() as tx:
            tx.jobs.insert([JobInsert(uuid.uuid4(), 1, 1, job)])

    with pytest.raises(UnexpectedDatabaseError) as fault:
        insert()
    assert "ck_jobs_priority" in str(fault.value)
    assert "secret" not in "".join(traceback.format_exception(fault.value))


def test_the_reads_of_a_list_have_their_time_together(stored_world: World) -> None:
    def read_for_long() -> None:
        with stored_world.database.snapshot(seconds=0.3) as tx:
            for _ in range(100):
                tx.access._connection.execute(text("SELECT pg_sleep(0.2)"))

    with pytest.raises(DeadlineExceeded):
        read_for_long()


def test_connections_in_use_can_be_cut_off(stored_world: World) -> None:
    def read_and_cut() -> None:
        with stored_world.database.transaction() as tx:
            stored_world.database.abort()
            tx.access.is_empty()

    with pytest.raises(DatabaseUnavailable):
        read_and_cut()
    with stored_world.database.transaction() as tx:
        assert tx.access.is_empty()


@pytest.mark.parametrize("option", ["sslmod=require", "connect_timeout=abc"])
def test_a_url_with_an_option_that_is_none_is_unusable(database_url: str, option: str) -> None:
    database = open_database(f"{database_url}&{option}")
    with pytest.raises(UnusableDatabaseUrl):
        database.schema_report(release="0.1.0")
    database.close()
