"""Jobs of one batch that wait for each other: a whole graph in one call."""

import uuid
from dataclasses import replace

import pytest

from jobs_service.core.create_jobs import RefusedTogether, create_jobs
from jobs_service.model.errors import DependencyNotFound, InvalidRequest, JobsError, RequestIdConflict
from jobs_service.model.job import JobView
from jobs_service.model.requests import CreateRequest, CreateResult
from tests.support.dependencies import Graph, some_id
from tests.support.world import World


@pytest.fixture
def graph(stored_world: World) -> Graph:
    return Graph(stored_world)


def together(graph: Graph, *requests: CreateRequest) -> list[CreateResult | JobsError]:
    with graph.world.database.transaction() as tx:
        return create_jobs(tx, requests, together=True)


def made(results: list[CreateResult | JobsError]) -> list[uuid.UUID]:
    return [result.job.job_id for result in results if isinstance(result, CreateResult)]


def test_jobs_of_one_batch_wait_for_each_other(graph: Graph) -> None:
    outside = graph.new()
    results = together(
        graph, graph.request(), graph.request(outside, indexes=(0,)), graph.request(indexes=(0, 1))
    )
    top, middle, bottom = made(results)
    assert graph.job(middle).waiting_on == tuple(sorted([outside, top]))
    assert [result.job for result in results if isinstance(result, CreateResult)] == [
        graph.job(each, JobView.FULL) for each in (top, middle, bottom)
    ]
    graph.end(top)
    graph.end(outside)
    assert graph.queued([middle, bottom]) == {middle}
    graph.end(middle)
    assert graph.queued([bottom]) == {bottom}


def test_a_batch_that_is_refused_in_part_writes_nothing_and_names_the_first(graph: Graph) -> None:
    before = graph.world.counts()
    missing = some_id()
    with pytest.raises(RefusedTogether) as refused:
        together(graph, graph.request(), graph.request(missing, indexes=(0,)), graph.request(indexes=(1,)))
    assert refused.value.index == 1
    assert isinstance(refused.value.refusal, DependencyNotFound)
    assert graph.world.counts() == before


def test_a_repeated_batch_answers_the_same_jobs_and_one_of_its_entries_may_have_been_alone(
    graph: Graph,
) -> None:
    ids = [uuid.uuid4() for _ in range(3)]
    alone = graph.new(request_id=ids[0])
    requests = [
        graph.request(request_id=ids[0]),
        graph.request(indexes=(0,), request_id=ids[1]),
        graph.request(indexes=(1,), request_id=ids[2]),
    ]
    first = together(graph, *requests)
    assert made(first)[0] == alone
    assert graph.job(made(first)[1]).waiting_on == (alone,)
    again = together(graph, *requests)
    assert made(again) == made(first)
    assert all(result.replayed for result in again if isinstance(result, CreateResult))


def test_a_batch_with_one_request_twice_waits_for_the_one_job(graph: Graph) -> None:
    twin = graph.request(request_id=uuid.uuid4())
    first, second, third = made(together(graph, twin, twin, graph.request(indexes=(1,))))
    assert first == second
    assert graph.job(third).waiting_on == (first,)


def test_a_batch_with_a_request_id_that_is_taken_is_refused(graph: Graph) -> None:
    request_id = uuid.uuid4()
    graph.new(request_id=request_id)
    other = graph.request(request_id=request_id, request_hash=b"1" * 32)
    with pytest.raises(RefusedTogether) as refused:
        together(graph, other, graph.request(indexes=(0,)))
    assert isinstance(refused.value.refusal, RequestIdConflict)


def test_nobody_waits_for_an_entry_that_is_only_validated(graph: Graph) -> None:
    planned = graph.request(validate_only=True)
    with pytest.raises(RefusedTogether) as refused:
        together(graph, planned, graph.request(indexes=(0,)))
    assert isinstance(refused.value.refusal, InvalidRequest)
    after = replace(planned, depends_on_indexes=(0,))
    assert [type(each) for each in together(graph, planned, after)] == [CreateResult, CreateResult]
