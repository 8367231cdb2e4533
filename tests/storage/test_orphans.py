"""Jobs of deleted data sets: which are cancelled, by whom, and when a deletion is forgotten."""

from datetime import timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

from jobs_service.core import orphans
from jobs_service.core.access_service import AccessService
from jobs_service.core.create_jobs import create_jobs
from jobs_service.core.job_service import JobService
from jobs_service.core.orphans import Orphans
from jobs_service.core.signals import Signals
from jobs_service.model.access import OPERATOR
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import DatasetPermissionDenied
from jobs_service.model.job import JobStatus, NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult
from jobs_service.storage import deleted_datasets
from jobs_service.upkeep.cancel_orphans import CancelOrphans
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed_ids
from tests.support.world import User, World


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
def duty(stored_world: World, signals: Signals) -> CancelOrphans:
    return CancelOrphans(Orphans(stored_world.database, signals))


def request(user: User, dataset: int, **more: Any) -> CreateRequest:
    """An import."""
    job = NewJob(
        dataset_id=dataset,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "a"},
        payload_bytes=17,
        request_hash=b"",
        **more,
    )
    return CreateRequest(user.caller, job)


def create(world: World, user: User, dataset: int, count: int = 1, **more: Any) -> list[UUID]:
    """Jobs of this user on this data set."""
    made = JobService(world.database).create_jobs([request(user, dataset, **more)] * count)
    return [result.job.job_id for result in made if isinstance(result, CreateResult)]


def statuses(world: World, dataset: int) -> dict[str, int]:
    """How many jobs of the data set there are in each status."""
    rows = world.sql.execute(
        "SELECT status, count(*) FROM jobs WHERE dataset_id = %s GROUP BY 1", (dataset,)
    ).fetchall()
    return dict(rows)


def left(world: World) -> list[Any]:
    """The deletions that are not forgotten yet."""
    return world.sql.execute("SELECT dataset_id FROM deleted_datasets ORDER BY 1").fetchall()


def deleted_by(world: World, admin: User, dataset: int) -> bool:
    return AccessService(world.database).changes(by=admin.caller).delete_dataset(dataset)


def test_what_is_pending_or_running_is_cancelled_with_reason_and_actor_and_nothing_else(
    stored_world: World,
) -> None:
    dataset, other = stored_world.dataset(), stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE, other: Level.WRITE})
    admin = stored_world.user(Role.ADMIN)
    jobs = create(stored_world, user, dataset, 5)
    stays = create(stored_world, user, other)[0]
    for job_id, status in zip(jobs[1:], [s for s in JobStatus if s is not JobStatus.PENDING], strict=True):
        stored_world.set_status(job_id, status)
    assert deleted_by(stored_world, admin, dataset)
    assert statuses(stored_world, dataset) == {"CANCELLED": 3, "COMPLETED": 1, "FAILED": 1}
    assert statuses(stored_world, other) == {"PENDING": 1}
    for job_id in jobs[:2]:
        last = stored_world.events(job_id)[-1]
        assert (last["type"], last["status_after"]) == ("CANCELLED", "CANCELLED")
        assert last["reason"] == f"data set {dataset} was deleted"
        assert (last["actor_id"], last["actor_soeid"]) == (admin.user_id, admin.soeid)
    assert [event["type"] for event in stored_world.events(stays)] == ["CREATED"]


def test_the_command_line_deletes_as_the_service_itself(stored_world: World) -> None:
    dataset = stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    job_id = create(stored_world, user, dataset)[0]
    assert stored_world.access.delete_dataset(dataset)
    last = stored_world.events(job_id)[-1]
    assert (last["type"], last["actor_id"], last["actor_soeid"]) == ("CANCELLED", 0, "")
    actor = stored_world.sql.execute(
        "SELECT actor_id, actor_soeid FROM access_events WHERE type = 'DATASET_DELETED'"
    ).fetchall()
    assert actor == [(None, None)]


def test_one_portion_is_cancelled_at_once_and_the_duty_does_the_rest(
    stored_world: World, duty: CancelOrphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "PORTION", 10)
    dataset = stored_world.dataset()
    create(stored_world, stored_world.user(grants={dataset: Level.WRITE}), dataset, 25)
    stored_world.access.delete_dataset(dataset)
    seen = [statuses(stored_world, dataset)]
    again = []
    for _ in range(3):
        again.append(duty.run_once())
        seen.append(statuses(stored_world, dataset))
    assert [each.get("CANCELLED", 0) for each in seen] == [10, 20, 25, 25]
    assert again == [True, False, False]


def test_a_job_that_somebody_holds_is_cancelled_the_next_time(
    stored_world: World, duty: CancelOrphans
) -> None:
    dataset = stored_world.dataset()
    job_id = create(stored_world, stored_world.user(grants={dataset: Level.WRITE}), dataset)[0]
    with connect(stored_world.database_url) as sql, sql.transaction():
        sql.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (job_id,))
        stored_world.access.delete_dataset(dataset)
        assert not duty.run_once(), "not again at once: it is held"
        assert statuses(stored_world, dataset) == {"PENDING": 1}
    duty.run_once()
    assert statuses(stored_world, dataset) == {"CANCELLED": 1}


def test_a_create_that_commits_after_the_deletion_is_cancelled_too(
    stored_world: World, duty: CancelOrphans
) -> None:
    dataset = stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    with stored_world.database.transaction() as tx:
        made = create_jobs(tx, [request(user, dataset)])[0]
        stored_world.access.delete_dataset(dataset)
        assert not duty.run_once()
    assert isinstance(made, CreateResult)
    assert statuses(stored_world, dataset) == {"PENDING": 1}
    assert left(stored_world) == [(dataset,)]
    duty.run_once()
    assert statuses(stored_world, dataset) == {"CANCELLED": 1}


def test_a_create_after_the_deletion_is_refused(stored_world: World) -> None:
    dataset = stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    stored_world.access.delete_dataset(dataset)
    answer = JobService(stored_world.database).create_jobs([request(user, dataset)])[0]
    assert isinstance(answer, DatasetPermissionDenied)
    assert statuses(stored_world, dataset) == {}


def test_of_a_data_set_put_again_only_the_jobs_from_before_are_cancelled(
    stored_world: World, duty: CancelOrphans
) -> None:
    dataset = stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    before = create(stored_world, user, dataset)[0]
    with connect(stored_world.database_url) as sql, sql.transaction():
        sql.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (before,))
        stored_world.access.delete_dataset(dataset)
        stored_world.access.put_dataset(dataset, "another one")
        stored_world.access.grant(user.soeid, dataset, Level.WRITE)
        after = create(stored_world, user, dataset)[0]
    duty.run_once()
    assert stored_world.events(before)[-1]["type"] == "CANCELLED"
    assert stored_world.events(after)[-1]["type"] == "CREATED"


def test_a_deletion_that_its_process_did_not_settle_gets_its_time_before_a_data_set_is_put_again(
    stored_world: World, duty: CancelOrphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    before = create(stored_world, user, dataset)[0]
    # As if killed between the deletion and the first portion.
    monkeypatch.setattr(Orphans, "cancel_of", Mock())
    stored_world.access.delete_dataset(dataset)
    stored_world.access.put_dataset(dataset, "another one")
    stored_world.access.grant(user.soeid, dataset, Level.WRITE)
    after = create(stored_world, user, dataset)[0]
    duty.run_once()
    assert stored_world.events(before)[-1]["type"] == "CANCELLED"
    assert stored_world.events(after)[-1]["type"] == "CREATED"


def test_a_deletion_is_forgotten_when_nobody_can_add_to_it_any_more(
    stored_world: World, duty: CancelOrphans
) -> None:
    young, old = stored_world.dataset(), stored_world.dataset()
    for dataset in (young, old):
        stored_world.access.delete_dataset(dataset)
    stored_world.sql.execute(
        "UPDATE deleted_datasets SET delete_time = delete_time - interval '61 s' WHERE dataset_id = %s",
        (old,),
    )
    duty.run_once()
    assert left(stored_world) == [(young,)]


def test_a_deletion_is_kept_while_a_transaction_runs_that_began_before_it(
    stored_world: World, duty: CancelOrphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_datasets, "KEPT", timedelta(0))
    dataset = stored_world.dataset()
    with connect(stored_world.database_url) as sql, sql.transaction():
        sql.execute("SELECT 1")
        stored_world.access.delete_dataset(dataset)
        duty.run_once()
        assert left(stored_world) == [(dataset,)]
    duty.run_once()
    assert left(stored_world) == []


def test_a_deletion_is_kept_while_it_has_jobs(
    stored_world: World, duty: CancelOrphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_datasets, "KEPT", timedelta(0))
    monkeypatch.setattr(orphans, "PORTION", 1)
    dataset = stored_world.dataset()
    create(stored_world, stored_world.user(grants={dataset: Level.WRITE}), dataset, 2)
    stored_world.access.delete_dataset(dataset)
    assert statuses(stored_world, dataset) == {"CANCELLED": 1, "PENDING": 1}
    kept = []
    for _ in range(2):
        duty.run_once()
        kept.append(left(stored_world))
    assert kept == [[(dataset,)], []]
    assert statuses(stored_world, dataset) == {"CANCELLED": 2}


def test_what_waits_for_a_cancelled_job_is_cancelled_too(stored_world: World) -> None:
    dataset, other = stored_world.dataset(), stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE, other: Level.WRITE})
    job_id = create(stored_world, user, dataset)[0]
    dependant = create(stored_world, user, other, depends_on=(job_id,))[0]
    stored_world.access.delete_dataset(dataset)
    last = stored_world.events(dependant)[-1]
    assert (last["type"], last["reason"]) == ("CANCELLED", f"dependency {job_id} ended CANCELLED")


def test_a_worker_loses_its_job_and_is_told_and_nothing_is_left_to_claim(
    stored_world: World, signals: Signals
) -> None:
    dataset = stored_world.dataset()
    create(stored_world, stored_world.user(grants={dataset: Level.WRITE}), dataset, 2)
    worker = stored_world.user(Role.SERVICE)
    stored_world.access.grant_run_type(worker.soeid, RunType.IMPORT)
    (running,) = claimed_ids(stored_world, claim_request(worker))[0]
    told: list[UUID] = []
    signals.revoked.subscribe(told.extend)
    AccessService(stored_world.database, signals).changes(by=OPERATOR).delete_dataset(dataset)
    assert told == [running]
    left_of = "SELECT (SELECT count(*) FROM job_leases), (SELECT count(*) FROM job_queue)"
    assert stored_world.sql.execute(left_of).fetchone() == (0, 0)
    assert statuses(stored_world, dataset) == {"CANCELLED": 2}
