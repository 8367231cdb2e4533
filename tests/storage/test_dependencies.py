"""Jobs that wait for others: made, told of an end, cancelled with what they wait for."""

import uuid
from datetime import timedelta

import pytest

from jobs_service.core.dependants import PORTION, UPKEEP_PORTION, tell
from jobs_service.model.caller import Level
from jobs_service.model.errors import DependencyNotFound, DependencyNotSatisfiable, JobsError, RowLocked
from jobs_service.model.job import JobStatus, JobView
from jobs_service.model.requests import CreateRequest, CreateResult, JobFilter
from jobs_service.model.retry import RetryPolicy
from tests.support.dependencies import Graph, some_id, statements, write_status
from tests.support.postgres import connect
from tests.support.world import World

COMPLETED, FAILED, CANCELLED, PENDING = (
    JobStatus.COMPLETED,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
    JobStatus.PENDING,
)


@pytest.fixture
def graph(stored_world: World) -> Graph:
    return Graph(stored_world)


# --- An end is told.


def test_a_job_waits_until_all_are_completed_and_every_read_says_for_which(graph: Graph) -> None:
    first, second = sorted([graph.new(), graph.new()])
    waiting = graph.new(first, second)
    assert graph.queued([waiting]) == set()
    for view in JobView:
        assert graph.job(waiting, view).waiting_on == (first, second)
    graph.end(first)
    for view in JobView:
        assert graph.job(waiting, view).waiting_on == (second,)
    assert (graph.job(waiting).version, graph.queued([waiting])) == (2, set())
    graph.end(second)
    assert (graph.job(waiting).version, graph.queued([waiting])) == (3, {waiting})
    assert graph.job(waiting).waiting_on == ()
    assert graph.job(waiting).available_time >= graph.job(second).update_time
    assert graph.noted() == {}


def test_a_list_says_what_a_job_waits_for(graph: Graph) -> None:
    first = graph.new()
    waiting = graph.new(first)
    with graph.world.database.snapshot(seconds=10) as tx:
        listed = tx.job_list.newest(None, JobFilter(), cursor=None, skip=0, limit=10)
    assert {job.job_id: job.waiting_on for job in listed} == {first: (), waiting: (first,)}


def test_both_ends_in_one_transaction_are_two_changes(graph: Graph) -> None:
    first, second = graph.new(), graph.new()
    waiting = graph.new(first, second)
    graph.end(first, second)
    assert (graph.job(waiting).version, graph.queued([waiting])) == (3, {waiting})


def test_a_start_delay_goes_on_after_the_last_dependency(graph: Graph) -> None:
    first = graph.new()
    waiting = graph.new(first, start_delay=timedelta(days=2))
    due = graph.job(waiting).available_time
    graph.end(first)
    assert graph.job(waiting).available_time == due
    found = graph.world.sql.execute("SELECT ready FROM job_queue WHERE job_id = %s", (waiting,))
    assert found.fetchone() == (False,)


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_a_failure_cancels_whoever_waits_and_says_why(graph: Graph, status: JobStatus) -> None:
    first = graph.new()
    waiting = graph.new(first, graph.new())
    graph.end(first, status=status)
    job = graph.job(waiting)
    assert (job.status, job.cancelled_by_soeid, job.version) == (CANCELLED, "", 2)
    assert job.cancel_reason == f"dependency {first} ended {status}"
    assert job.waiting_on == ()
    created, cancelled = graph.world.events(waiting)
    assert (created["type"], cancelled["type"]) == ("CREATED", "CANCELLED")
    assert (cancelled["actor_id"], cancelled["actor_soeid"]) == (0, "")
    assert (cancelled["reason"], cancelled["time"]) == (job.cancel_reason, job.end_time)


def test_a_cancel_takes_a_chain_and_a_diamond_with_it_each_job_once(graph: Graph) -> None:
    top = graph.new()
    left, right = graph.new(top), graph.new(top)
    bottom = graph.new(left, right)
    chain = [bottom]
    for _ in range(7):
        chain.append(graph.new(chain[-1]))
    graph.cancel(top)
    # A few levels in the transaction of the cancel itself, the others after it.
    assert graph.statuses([left, right, bottom]) == {"CANCELLED": 3}
    assert graph.statuses(chain)["PENDING"] > 0
    graph.work_off()
    everybody = [left, right, *chain]
    assert graph.statuses(everybody) == {"CANCELLED": len(everybody)}
    assert [len(graph.world.events(each)) for each in everybody] == [2] * len(everybody)
    assert [graph.job(each).version for each in everybody] == [2] * len(everybody)
    assert graph.job(chain[-1]).cancel_reason == f"dependency {chain[-2]} ended CANCELLED"


def test_who_keeps_waiting_runs_after_the_other_was_tried_again(graph: Graph) -> None:
    first = graph.new()
    waiting, leaving = graph.new(first, keep_waiting=True), graph.new(first)
    graph.end(first, status=FAILED)
    assert (graph.job(waiting).status, graph.job(leaving).status) == (PENDING, CANCELLED)
    assert (graph.job(waiting).waiting_on, graph.job(waiting).version) == ((first,), 1)
    with graph.world.database.transaction() as tx:
        write_status(tx, [first], PENDING)
    graph.end(first)
    assert (graph.job(waiting).version, graph.queued([waiting])) == (2, {waiting})
    assert graph.job(leaving).status is CANCELLED


# --- Too many, or held by others: upkeep.


def test_a_failure_that_takes_2000_with_it_is_worked_off_in_portions(graph: Graph) -> None:
    top = graph.new()
    waiting = graph.dependants_by_hand(2_000, top)
    graph.cancel(top)
    assert graph.statuses(waiting) == {"CANCELLED": PORTION, "PENDING": 2_000 - PORTION}
    left = 2_000 - PORTION
    while left:
        assert graph.duty.run_once()
        now = graph.statuses(waiting).get("PENDING", 0)
        assert 0 < left - now <= UPKEEP_PORTION
        left = now
    graph.work_off()
    assert graph.noted() == {}
    events = graph.world.sql.execute(
        "SELECT count(*), count(DISTINCT job_id) FROM job_events WHERE type = 'CANCELLED'"
    )
    assert events.fetchone() == (2_001, 2_001)


def test_many_who_wait_for_a_success_are_told_once_each(graph: Graph) -> None:
    top, other = graph.new(), graph.new()
    free, bound = graph.many(300, top), graph.many(300, top, other)
    graph.end(top)
    graph.work_off()
    assert graph.queued([*free, *bound]) == set(free)
    versions = graph.world.sql.execute(
        "SELECT DISTINCT version FROM jobs WHERE job_id = ANY(%s)", ([*free, *bound],)
    )
    assert versions.fetchall() == [(2,)]


def test_nobody_waits_for_a_dependant_that_is_held_and_it_is_told_later(graph: Graph) -> None:
    top = graph.new()
    waiting = sorted(graph.new(top) for _ in range(5))
    with connect(graph.world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (waiting[2],))
        graph.end(top)
        assert graph.noted() == {top: waiting[1]}
        graph.work_off()
        # Those before it are told, once; there is nothing to be run again at once for.
        assert graph.queued(waiting) == set(waiting[:2])
        assert not graph.duty.run_once()
    graph.work_off()
    assert graph.queued(waiting) == set(waiting)
    assert [graph.job(each).version for each in waiting] == [2] * 5
    assert graph.noted() == {}


def test_upkeep_leaves_an_ended_job_that_is_held_and_goes_on_with_the_next(graph: Graph) -> None:
    tops = [graph.new(), graph.new()]
    waiting = [graph.dependants_by_hand(PORTION + 10, top) for top in tops]
    for top in tops:
        graph.end(top, status=FAILED)
    with connect(graph.world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (tops[0],))
        graph.work_off()
        assert graph.statuses(waiting[0]) == {"CANCELLED": PORTION, "PENDING": 10}
        assert graph.statuses(waiting[1]) == {"CANCELLED": PORTION + 10}
    graph.work_off()
    assert graph.statuses(waiting[0]) == {"CANCELLED": PORTION + 10}


def test_a_dependency_tried_again_in_between_spares_those_who_were_not_told_yet(graph: Graph) -> None:
    top = graph.new()
    waiting = sorted(graph.dependants_by_hand(PORTION + 50, top))
    graph.end(top, status=FAILED)
    with graph.world.database.transaction() as tx:
        write_status(tx, [top], PENDING)
    graph.work_off()
    assert graph.noted() == {}
    assert graph.statuses(waiting) == {"CANCELLED": PORTION, "PENDING": 50}
    graph.end(top)
    graph.work_off()
    assert graph.queued(waiting) == set(waiting[PORTION:])


def test_a_second_end_before_the_first_was_told_begins_anew(graph: Graph) -> None:
    top = graph.new()
    waiting = sorted(graph.dependants_by_hand(PORTION + 50, top))
    graph.end(top, status=FAILED)
    with graph.world.database.transaction() as tx:
        write_status(tx, [top], PENDING)
    graph.end(top)
    graph.work_off()
    assert graph.queued(waiting) == set(waiting[PORTION:])
    assert {graph.job(each).version for each in waiting} == {2}


# --- Who may wait for what.


def test_a_dependency_that_is_completed_is_no_reason_to_wait(graph: Graph) -> None:
    first = graph.new()
    graph.end(first)
    waiting = graph.new(first)
    assert (graph.job(waiting).waiting_on, graph.queued([waiting])) == ((), {waiting})


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_a_dependency_that_has_failed_refuses_unless_the_job_keeps_waiting(
    graph: Graph, status: JobStatus
) -> None:
    first = graph.new()
    graph.end(first, status=status)
    before = graph.world.counts()
    refusal = graph.ask(graph.new(), first)
    assert isinstance(refusal, DependencyNotSatisfiable)
    assert refusal.metadata == {"job_id": str(first), "status": status.value}
    assert isinstance(graph.ask(first, validate_only=True), DependencyNotSatisfiable)
    assert graph.world.counts() == (before[0] + 1, before[1] + 1)
    waiting = graph.new(first, keep_waiting=True)
    assert (graph.job(waiting).waiting_on, graph.queued([waiting])) == ((first,), set())


def test_a_dependency_must_be_visible_to_whom_the_job_will_belong(graph: Graph) -> None:
    world = graph.world
    seen, hidden = graph.new(), Graph(world).new()
    reader = world.user(grants={graph.dataset_id: Level.WRITE})
    answers = {
        "nobody's": graph.ask(some_id(), caller=reader),
        "hidden": graph.ask(hidden, caller=reader),
        "hidden, planned": graph.ask(hidden, caller=reader, validate_only=True),
    }
    assert {name: type(answer) for name, answer in answers.items()} == dict.fromkeys(
        answers, DependencyNotFound
    )
    assert isinstance(answers["hidden"], JobsError)
    assert answers["hidden"].metadata == {"job_id": str(hidden)}
    assert isinstance(graph.ask(seen, caller=reader), CreateResult)


def test_nobody_waits_for_the_lock_of_a_dependency_that_he_may_not_see(graph: Graph) -> None:
    hidden = Graph(graph.world).new()
    with connect(graph.world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (hidden,))
        assert isinstance(graph.ask(hidden), DependencyNotFound)


def test_one_dependency_that_is_held_refuses_those_who_wait_for_it_alone(graph: Graph) -> None:
    held, free = graph.new(), graph.new()
    with connect(graph.world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (held,))
        results = graph.service.create_jobs([graph.request(), graph.request(held), graph.request(free)])
    assert [type(result) for result in results] == [CreateResult, RowLocked, CreateResult]


def test_a_repeated_request_is_answered_whatever_has_become_of_its_dependencies(graph: Graph) -> None:
    first, request_id = graph.new(), uuid.uuid4()
    waiting = graph.new(first, request_id=request_id)
    graph.end(first, status=FAILED)
    again = graph.ask(first, request_id=request_id)
    assert isinstance(again, CreateResult)
    assert (again.job.job_id, again.replayed, again.job.status) == (waiting, True, CANCELLED)
    planned = graph.ask(first, request_id=request_id, validate_only=True)
    assert isinstance(planned, CreateResult)
    assert planned.replayed


def test_a_planned_job_shows_what_it_would_wait_for(graph: Graph) -> None:
    first = graph.new()
    before = graph.world.counts()
    planned = graph.ask(first, validate_only=True)
    assert isinstance(planned, CreateResult)
    assert (planned.planned, planned.job.waiting_on) == (True, (first,))
    assert graph.world.counts() == before


def test_what_is_asked_for_is_stored(graph: Graph) -> None:
    policy = RetryPolicy(initial=timedelta(seconds=1.5), longest=timedelta(days=1), multiplier=1.25)
    job_id = graph.new(
        graph.new(), run_timeout=timedelta(days=30), retry_policy=policy, max_attempts=9, keep_waiting=True
    )
    stored = graph.world.sql.execute(
        """SELECT max_attempts, attempt_budget, run_timeout, retry_initial, retry_max, retry_multiplier,
                  dependencies, keep_waiting
             FROM jobs WHERE job_id = %s""",
        (job_id,),
    )
    times = (timedelta(days=30), policy.initial, policy.longest)
    assert stored.fetchone() == (9, 9, *times, 1.25, 1, True)


# --- What it costs.


def test_a_create_without_dependencies_sends_nothing_more_and_a_batch_no_more_than_one(graph: Graph) -> None:
    first = graph.new()

    def sent(*requests: CreateRequest) -> list[str]:
        return statements(graph.world, lambda: graph.service.create_jobs(requests))

    plain = sent(graph.request())
    assert not [text for text in plain if "job_dependencies" in text]
    one, many = sent(graph.request(first)), sent(*[graph.request(first, graph.new())] * 50)
    assert len(one) == len(many) == len(plain) + 3


def test_an_end_that_nobody_waits_for_costs_one_statement(graph: Graph) -> None:
    jobs = graph.many(50)
    with graph.world.database.transaction() as tx:
        write_status(tx, jobs, COMPLETED)
        assert len(statements(graph.world, lambda: tell(tx, jobs))) == 1
