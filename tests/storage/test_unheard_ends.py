"""Jobs that an old replica cancels, and those that wait for them: in the end they are told too."""

from uuid import UUID

import pytest

from jobs_service.core.signals import Signals
from jobs_service.model.job import JobStatus
from jobs_service.upkeep import adopt_jobs
from jobs_service.upkeep.adopt_jobs import AdoptJobs
from tests.support.dependencies import Graph
from tests.support.work import Workshop
from tests.support.world import World


@pytest.fixture
def graph(stored_world: World) -> Graph:
    return Graph(stored_world)


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


@pytest.fixture
def adopting(stored_world: World) -> AdoptJobs:
    return AdoptJobs(stored_world.database, Signals())


def pending(graph: Graph, shop: Workshop) -> UUID:
    return graph.new()


def running(graph: Graph, shop: Workshop) -> UUID:
    return shop.claim(graph.new()).job_id


def waiting(graph: Graph, shop: Workshop) -> UUID:
    return graph.new(graph.new())


@pytest.mark.parametrize("make", [pending, running, waiting])
def test_who_waits_for_a_job_that_an_old_replica_cancels_is_cancelled(
    graph: Graph, shop: Workshop, adopting: AdoptJobs, make: object
) -> None:
    assert callable(make)
    dependency = make(graph, shop)
    dependants = [graph.new(dependency), graph.new(graph.new(), dependency)]
    shop.cancel_as_0_1_0(dependency)
    adopting.run_once()
    graph.work_off()
    for job in map(graph.job, dependants):
        assert job.status is JobStatus.CANCELLED
        assert job.cancel_reason == f"dependency {dependency} ended CANCELLED"


def test_who_keeps_waiting_and_who_waits_for_others_is_left_alone(
    graph: Graph, shop: Workshop, adopting: AdoptJobs
) -> None:
    cancelled, completed, open_one = graph.new(), graph.new(), graph.new()
    jobs = [graph.new(cancelled, keep_waiting=True), graph.new(completed, open_one)]
    graph.end(completed)
    shop.cancel_as_0_1_0(cancelled)
    adopting.run_once()
    assert graph.noted() == {}
    assert [graph.job(job_id).status for job_id in jobs] == [JobStatus.PENDING] * 2


def test_all_jobs_are_looked_at_a_portion_at_a_time_and_then_again(
    graph: Graph, shop: Workshop, adopting: AdoptJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_jobs, "PORTION", 4)
    first, second = graph.new(), graph.new()
    graph.new(first)
    graph.many(10)
    graph.new(second)
    for dependency, passes in ((first, 4), (second, 8)):
        shop.cancel_as_0_1_0(dependency)
        for _ in range(passes):
            adopting.run_once()
        assert dependency in graph.noted()
