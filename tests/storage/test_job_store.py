"""What is read of a job is what its reader may see: who is refused has had nothing read for it."""

import threading
import uuid

import pytest

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Caller, Level, Role
from jobs_service.model.job import JobView, NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult, GetRequest
from jobs_service.storage.watchdog import Watchdog
from tests.support.service import wait_until
from tests.support.world import User, World


def new_job(world: World, owner: User, dataset_id: int) -> uuid.UUID:
    """A job of this owner."""
    job = NewJob(
        run_type=RunType.IMPORT,
        dataset_id=dataset_id,
        run_parameters={"file_path": "a.csv"},
        payload_bytes=30,
        request_hash=b"0" * 32,
    )
    [made] = JobService(world.database).create_jobs([CreateRequest(owner.caller, job)])
    assert isinstance(made, CreateResult)
    return made.job.job_id


def test_a_job_is_read_for_nobody_who_will_be_refused(stored_world: World) -> None:
    dataset = stored_world.dataset()
    owner = stored_world.user(grants={dataset: Level.WRITE})
    admin, program = stored_world.user(Role.ADMIN), stored_world.user(Role.SERVICE)
    reader, stranger = stored_world.user(grants={dataset: Level.READ}), stored_world.user()
    job_id = new_job(stored_world, owner, dataset)
    readers: dict[str, Caller] = {
        "owner": owner.caller,
        "reader": reader.caller,
        "admin": admin.caller,
        "a program for the owner": program.for_user(owner),
        "an admin for the reader": admin.for_user(reader),
    }
    refused: dict[str, Caller] = {
        "stranger": stranger.caller,
        "a program by itself": program.caller,
        "a program for a stranger": program.for_user(stranger),
        "a program for an admin": program.for_user(admin),
        "an admin for a program": admin.for_user(program),
        "a user for the owner": stranger.for_user(owner),
        "nobody": Caller("zz99999", 2**40),
    }
    asked = [GetRequest(caller, job_id) for caller in (*readers.values(), *refused.values())]
    with stored_world.database.one_statement() as tx:
        found = tx.jobs.find(asked, JobView.FULL)
    shown = [answer.job is not None for answer in found]
    assert dict(zip((*readers, *refused), shown, strict=True)) == {
        **dict.fromkeys(readers, True),
        **dict.fromkeys(refused, False),
    }


def test_a_watchdog_that_could_not_start_is_started_by_the_next_who_needs_it(
    stored_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog()
    with stored_world.database.engine.connect() as connection:
        with monkeypatch.context() as patched:

            def fail(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError), watchdog.watching(connection, 10):
                pass
        with watchdog.watching(connection, 0.1) as watch:
            connection.exec_driver_sql("SELECT 1")
            wait_until(lambda: watch.shut, 10, "the connection is shut")
        connection.invalidate()
