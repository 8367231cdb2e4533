"""Ends that meet: with another end, a create of who waits, a retry, another replica's upkeep."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from uuid import UUID

import pytest

from jobs_service.core.create_jobs import create_jobs
from jobs_service.core.job_service import JobService
from jobs_service.core.signals import Signals
from jobs_service.model.errors import DependencyNotSatisfiable, TransactionRolledBack
from jobs_service.model.job import Job, JobStatus
from jobs_service.model.requests import CancelRequest, CreateResult
from jobs_service.upkeep.tell_dependants import TellDependants
from tests.support.dependencies import Graph, write_status
from tests.support.postgres import open_database
from tests.support.service import wait_until
from tests.support.world import World

ROUNDS = 60


@pytest.fixture
def graph(stored_world: World) -> Graph:
    return Graph(stored_world)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def ending(
    graph: Graph,
    job_id: UUID,
    status: JobStatus = JobStatus.COMPLETED,
    between: Callable[[], object] = lambda: None,
) -> Callable[[], object]:
    """The end of a job, to be begun later."""
    return lambda: graph.end(job_id, status=status, between=between)


def after(creates: int, graph: Graph, work: Callable[[], object]) -> Callable[[], object]:
    """Some creates, and then that."""

    def run() -> object:
        for _ in range(creates):
            graph.new()
        return work()

    return run


def at_once(threads: ThreadPoolExecutor, *works: Callable[[], object]) -> list[object]:
    """Begin these together; returns what each gave."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        barrier.wait(10)
        return work()

    futures: list[Future[object]] = [threads.submit(run, work) for work in works]
    return [future.result(30) for future in futures]


def test_the_last_two_ends_at_once_are_both_told(graph: Graph, threads: ThreadPoolExecutor) -> None:
    for turn in range(ROUNDS):
        first, second = graph.new(), graph.new()
        waiting = graph.new(first, second)
        # In every other round both are held, and neither sees the other, before the dependant is told.
        both = threading.Barrier(2)

        def meet(both: threading.Barrier = both, turn: int = turn) -> None:
            if turn % 2:
                both.wait(10)

        at_once(threads, ending(graph, first, between=meet), ending(graph, second, between=meet))
        graph.work_off()
        assert graph.queued([waiting]) == {waiting}
        assert graph.job(waiting).version == 3
    assert graph.noted() == {}


def test_a_success_and_a_failure_at_once_cancel_who_waits_for_both(
    graph: Graph, threads: ThreadPoolExecutor
) -> None:
    for _ in range(ROUNDS):
        first, second = graph.new(), graph.new()
        waiting = graph.new(first, second)
        at_once(threads, ending(graph, first), ending(graph, second, JobStatus.FAILED))
        graph.work_off()
        assert graph.job(waiting).status is JobStatus.CANCELLED
        assert graph.queued([waiting]) == set()


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED])
def test_an_end_while_its_dependant_is_being_created_is_never_missed(
    graph: Graph, threads: ThreadPoolExecutor, status: JobStatus
) -> None:
    seen: set[str] = set()
    for turn in range(2 * ROUNDS):
        first = graph.new()
        # Now the one, now the other has a head start of a few statements, now none.
        behind = [(0, 0), (2, 0), (0, 2), (1, 0), (0, 1)][turn % 5]

        asking: Callable[[], object] = partial(graph.ask, first)
        _, result = at_once(
            threads,
            after(behind[0], graph, ending(graph, first, status)),
            after(behind[1], graph, asking),
        )
        graph.work_off()
        if isinstance(result, DependencyNotSatisfiable):
            assert status is JobStatus.FAILED
            seen.add("refused")
            continue
        assert isinstance(result, CreateResult)
        seen.add("waited" if result.job.waiting_on else "free at once")
        job = graph.job(result.job.job_id)
        expected = JobStatus.PENDING if status is JobStatus.COMPLETED else JobStatus.CANCELLED
        assert job.status is expected
        assert graph.queued([job.job_id]) == ({job.job_id} if status is JobStatus.COMPLETED else set())
    # Both orders have happened.
    assert len(seen) == 2, seen


def test_an_end_waits_for_a_create_that_holds_the_dependency_and_then_tells_the_new_job(
    graph: Graph, threads: ThreadPoolExecutor
) -> None:
    first = graph.new()
    with graph.world.database.transaction() as tx:
        [result] = create_jobs(tx, [graph.request(first)])
        ended = threads.submit(graph.end, first)
        _wait_for_lock(graph)
        assert not ended.done()
    ended.result(10)
    assert isinstance(result, CreateResult)
    assert graph.queued([result.job.job_id]) == {result.job.job_id}


def test_a_create_waits_for_an_end_and_then_needs_not_wait_any_more(
    graph: Graph, threads: ThreadPoolExecutor
) -> None:
    first = graph.new()
    with graph.world.database.transaction() as tx:
        write_status(tx, [first], JobStatus.COMPLETED)
        creating = threads.submit(graph.ask, first)
        _wait_for_lock(graph)
    result = creating.result(10)
    assert isinstance(result, CreateResult)
    assert result.job.waiting_on == ()
    assert graph.queued([result.job.job_id]) == {result.job.job_id}


def test_a_dependency_that_is_completed_is_not_purged_while_its_dependant_is_being_created(
    graph: Graph,
) -> None:
    completed, running = graph.new(), graph.new()
    graph.end(completed)
    with graph.world.database.transaction() as tx:
        [result] = create_jobs(tx, [graph.request(completed, running)])
        with graph.world.database.transaction() as purging:
            assert purging.retention.lock([completed, running]) == []
    graph.end(running)
    assert isinstance(result, CreateResult)
    assert graph.queued([result.job.job_id]) == {result.job.job_id}


def test_a_dependant_that_is_being_tried_again_learns_of_an_end_in_between(
    graph: Graph, threads: ThreadPoolExecutor
) -> None:
    first, second = graph.new(), graph.new()
    waiting = graph.new(first, second)
    graph.cancel(waiting)
    with graph.world.database.transaction() as tx:
        # Locked and made PENDING, but not committed: whoever ends the dependency sees it CANCELLED.
        write_status(tx, [waiting], JobStatus.PENDING)
        tx.queue.remove([waiting])
        graph.end(first, second)
        assert set(graph.noted()) == {first, second}
    graph.work_off()
    assert graph.queued([waiting]) == {waiting}


def test_two_replicas_work_off_a_failure_together_and_others_are_not_held_up(
    graph: Graph, threads: ThreadPoolExecutor
) -> None:
    top = graph.new()
    waiting = graph.dependants_by_hand(3_000, top)
    chained = [graph.new(each) for each in waiting[:50]]
    alone = graph.many(20)
    graph.cancel(top)
    other = open_database(graph.world.database_url)
    try:
        duties = [graph.duty, TellDependants(other, Signals())]
        service = JobService(other)

        def work(duty: TellDependants) -> None:
            for _ in range(1_000):
                if not _run(duty) and not graph.noted():
                    return
            raise AssertionError("there is no end of it")

        def meanwhile() -> None:
            for each in alone:
                [cancelled] = service.cancel_jobs([CancelRequest(graph.owner.caller, each, None)])
                assert isinstance(cancelled, Job)
                graph.new()

        at_once(threads, *[lambda duty=duty: work(duty) for duty in duties], meanwhile)
    finally:
        other.close()
    everybody = [*waiting, *chained]
    assert graph.statuses(everybody) == {"CANCELLED": len(everybody)}
    events = graph.world.sql.execute(
        """SELECT count(*), count(DISTINCT job_id) FROM job_events
            WHERE type = 'CANCELLED' AND job_id = ANY(%s)""",
        (everybody,),
    )
    assert events.fetchone() == (len(everybody), len(everybody))
    assert graph.noted() == {}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_failure_that_takes_100000_with_it_is_worked_off(
    graph: Graph, threads: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    top = graph.new()
    waiting = graph.dependants_by_hand(100_000, top)
    graph.world.sql.execute("VACUUM ANALYZE jobs, job_dependencies")
    graph.cancel(top)
    times = graph.work_off()
    assert graph.statuses(waiting) == {"CANCELLED": 100_000}
    assert times >= 100_000 // 500
    with capsys.disabled():
        print(f"\n100,000 dependants cancelled in {times} portions")


def _run(duty: TellDependants) -> bool:
    """As upkeep runs it: what was rolled back is run again."""
    try:
        return duty.run_once()
    except TransactionRolledBack:
        return True


def _wait_for_lock(graph: Graph) -> None:
    """Until somebody waits for a lock in this database."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def somebody() -> bool:
        row = graph.world.sql.execute(waiting.encode()).fetchone()
        return row is not None and row[0] > 0

    wait_until(somebody, 10, "somebody waits for a lock")
