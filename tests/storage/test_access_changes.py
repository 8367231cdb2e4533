"""What changes of access do beside what they are asked: places of limits, signals, the order of changes."""

from typing import Any

import pytest

from jobs_service.core.access_service import AccessService
from jobs_service.core.signals import Signals
from jobs_service.model.access import OPERATOR
from jobs_service.model.caller import Role
from jobs_service.model.errors import RowLocked
from jobs_service.model.job import RunType
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed_ids, flood
from tests.support.world import User, World


@pytest.fixture
def worker(stored_world: World) -> User:
    user = stored_world.user(Role.SERVICE)
    stored_world.access.grant_run_type(user.soeid, RunType.IMPORT)
    return user


def test_a_limit_holds_what_waits_and_frees_it_when_it_is_raised_or_removed(
    stored_world: World, worker: User
) -> None:
    dataset = stored_world.dataset()
    flood(stored_world, dataset, 10)
    request = claim_request(worker, max_jobs=100)
    got = []
    for most in (2, 3, 1, None):
        stored_world.access.set_limit(dataset, most)
        got.append(len(claimed_ids(stored_world, request)[0]))
    assert got == [2, 1, 0, 7]


def test_a_limit_counts_what_runs_already(stored_world: World, worker: User) -> None:
    dataset = stored_world.dataset()
    flood(stored_world, dataset, 10)
    assert len(claimed_ids(stored_world, claim_request(worker, max_jobs=4))[0]) == 4
    stored_world.access.set_limit(dataset, 5)
    assert len(claimed_ids(stored_world, claim_request(worker, max_jobs=100))[0]) == 1


def test_who_waits_for_work_is_told_what_a_limit_sets_free_after_the_commit(
    stored_world: World, worker: User
) -> None:
    dataset = stored_world.dataset()
    stored_world.access.set_limit(dataset, 1)
    flood(stored_world, dataset, 3)
    signals = Signals()
    seen: list[Any] = []
    limits = "SELECT max_running FROM dataset_limits WHERE dataset_id = %s"

    def told(run_types: Any) -> None:
        seen.append((set(run_types), stored_world.sql.execute(limits, (dataset,)).fetchall()))

    signals.ready.subscribe(told)
    changes = AccessService(stored_world.database, signals).changes(by=OPERATOR)
    for most in (2, 2, None):
        changes.set_limit(dataset, most)
    assert seen == [({RunType.IMPORT}, [(2,)]), (set(RunType), [])]


def test_a_run_type_revoked_is_one_no_more_work_is_given_for(stored_world: World, worker: User) -> None:
    flood(stored_world, stored_world.dataset(), 2)
    assert len(claimed_ids(stored_world, claim_request(worker))[0]) == 1
    stored_world.access.revoke_run_type(worker.soeid, RunType.IMPORT)
    with pytest.raises(Exception, match="with the run type IMPORT granted"):
        claimed_ids(stored_world, claim_request(worker))


def test_changes_wait_for_each_other_and_give_up_in_time(stored_world: World) -> None:
    user = stored_world.user()
    with connect(stored_world.database_url) as sql, sql.transaction():
        sql.execute("SELECT pg_advisory_xact_lock(x'6A6F62735F616363'::bigint)")
        with pytest.raises(RowLocked):
            stored_world.access.put_user(user.soeid, Role.ADMIN)
    assert stored_world.access.put_user(user.soeid, Role.ADMIN).changed
