"""While an old transaction keeps what was claimed, claims begin at the first job, and miss none for long."""

from uuid import UUID

import pytest

from jobs_service.core import queue_heads
from jobs_service.core.queue_heads import QueueHeads
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.job import RunType
from jobs_service.model.work import ClaimRequest, ClaimResult
from jobs_service.storage.claims import FIRST, Place
from jobs_service.upkeep import find_heads
from jobs_service.upkeep.find_heads import FindHeads
from tests.support.queued import claim_request, flood, new_insert, put
from tests.support.world import World


class Replica:
    """A process that finds its heads itself, and takes the smallest number of dead rows for many."""

    def __init__(self, world: World) -> None:
        self.heads, self.heard, signals = QueueHeads(), list[RunType](), Signals()
        signals.ready.subscribe(self.heard.extend)
        self.find_heads = FindHeads(world.database, signals, self.heads)
        self._service = WorkerService(world.database, signals, self.heads)

    def claim(self, request: ClaimRequest) -> list[UUID]:
        """Claim; returns the ids."""
        [result] = self._service.claim_jobs([request])
        assert isinstance(result, ClaimResult)
        return [claim.job.job_id for claim in result.claims]


@pytest.fixture
def replica(stored_world: World, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(find_heads, "MANY_DEAD_ROWS", -1)
    # However slow this machine is.
    monkeypatch.setattr(queue_heads, "FRESH_SECONDS", 600.0)
    return Replica(stored_world)


def test_claims_look_at_everything_while_little_stands_in_the_way(stored_world: World) -> None:
    flood(stored_world, stored_world.dataset(), 3)
    replica = Replica(stored_world)
    replica.find_heads.run_once()
    assert replica.heads.of(list(RunType)) == dict.fromkeys(RunType, FIRST)


def test_claims_begin_at_the_first_job_found_and_go_on_in_order(
    stored_world: World, replica: Replica
) -> None:
    worker = stored_world.service_user()
    ids = flood(stored_world, stored_world.dataset(), 6)
    assert replica.claim(claim_request(worker, 2)) == ids[:2]
    replica.find_heads.run_once()
    assert replica.heads.of([RunType.IMPORT]) == {RunType.IMPORT: Place(0, 3, ids[2])}
    assert replica.claim(claim_request(worker, 3)) == ids[2:5]
    assert replica.claim(claim_request(worker, 3, list(RunType))) == ids[5:]


def test_what_comes_before_the_place_is_claimed_after_the_next_look(
    stored_world: World, replica: Replica
) -> None:
    worker, dataset = stored_world.service_user(), stored_world.dataset()
    ids = flood(stored_world, dataset, 3)
    replica.find_heads.run_once()
    urgent = new_insert(dataset, priority=1)
    put(stored_world, [urgent])
    assert replica.claim(claim_request(worker)) == ids[:1]
    replica.find_heads.run_once()
    assert replica.heard == [RunType.IMPORT]
    assert replica.claim(claim_request(worker, 2)) == [urgent.job_id, ids[1]]


def test_nobody_is_told_that_there_is_nothing_while_there_is(stored_world: World, replica: Replica) -> None:
    replica.find_heads.run_once()
    urgent = new_insert(stored_world.dataset(), priority=1)
    put(stored_world, [urgent])
    assert replica.claim(claim_request(stored_world.service_user())) == [urgent.job_id]


def test_a_place_that_was_not_looked_at_again_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = QueueHeads()
    heads.set(RunType.IMPORT, Place(0, 7, UUID(int=7)))
    monkeypatch.setattr(queue_heads, "FRESH_SECONDS", -1.0)
    assert heads.of([RunType.IMPORT]) == {RunType.IMPORT: FIRST}
