"""What somebody tries who wants to see or change others' jobs: each attempt, and the test that it fails.

Guess ids: neighbours of a known one, nil, other spellings
    test_an_id_near_a_known_one_finds_nothing, test_the_ids_of_jobs_made_together_can_not_be_counted_up,
    test_bad_input.py
Compare the answers for hidden and for missing ones, every byte
    test_visibility.py
Compare their times
    test_hostile_timing.py
Lock a job that is hidden, or wait for its lock
    test_who_may_not_cancel_a_job_neither_locks_it_nor_waits_for_it
Send the page token of another, or of another filter
    test_a_page_token_shows_nothing_but_ones_own, unit/test_page_tokens.py, fuzz/test_conversions.py
Filter by what others' jobs have, and watch rows, totals and tokens
    test_no_filter_tells_of_hidden_jobs, test_a_number_beyond_the_cap_tells_nothing
Claim to be somebody else: doubled, odd and binary headers
    test_no_spelling_of_the_header_makes_a_caller_somebody_else, test_two_headers_for_two_users_are_none,
    test_hostile.py, test_on_behalf.py, test_permission_matrix.py
Use a request_id of others, or find it taken
    test_the_request_ids_of_others_tell_nothing
Repeat a request when the permission, the role, the user or the token is gone
    test_a_repeated_request_needs_a_caller_who_still_counts, test_visibility.py
Ask with validate_only, or with the parameters, what exists
    test_validate_only_tells_no_more_than_a_create, test_no_users_id_is_told_by_the_parameters,
    test_visibility.py
Forge, stretch or confuse a token
    test_hostile_tokens.py, unit/test_tokens.py
Put SQL into a text, a key, a filter
    test_sql_in_any_text_is_only_text
Read the log, or write into it
    test_hostile_logs.py, fuzz/test_http2.py
Give oneself a role or a permission
    test_access_matrix.py
Learn something without credentials: health, reflection, strange paths
    test_health_and_reflection_tell_nothing_of_the_data, test_hostile.py
Do any of this with many jobs at once
    test_hostile_batches.py
Use up what all share
    test_hostile_load.py, fuzz/test_framing.py, fuzz/test_http2.py
"""

import itertools
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from jobs.v1 import jobs_pb2
from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Level, Role
from jobs_service.model.errors import JobNotFound, JobPermissionDenied, JobsError
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest
from jobs_service.storage.database import Database
from tests.support.client import Client, Metadata, refused
from tests.support.judge import METHODS, Judge, message
from tests.support.postgres import connect
from tests.support.world import User, World

JOB_CALLS = ("GetJob", "GetJobStatus", "CancelJob")


@dataclass(frozen=True)
class Scene:
    """A victim with a job on a data set, and a thief who has a data set of its own."""

    world: World
    victim: User
    victims_dataset: int
    job: jobs_pb2.Job
    thief: User
    thiefs_dataset: int

    @property
    def client(self) -> Client:
        return self.world.client(self.thief)


@pytest.fixture
def scene(world: World) -> Scene:
    """Both have written; the victim's job has everything that could be looked for."""
    secret, own = world.dataset(), world.dataset()
    victim, thief = world.user(grants={secret: Level.ADMIN}), world.user(grants={own: Level.ADMIN})
    job = world.client(victim).create(
        dataset_id=secret, external_id=f"secret-{secret}", description="secret", request_id=str(uuid.uuid4())
    )
    world.client(thief).create(dataset_id=own, external_id="mine")
    return Scene(world, victim, secret, job.job, thief, own)


def not_found(client: Client, job_id: str) -> None:
    for rpc in JOB_CALLS:
        with refused("NOT_FOUND", "JOB_NOT_FOUND"):
            client.call(rpc, message(rpc, job_id=job_id))


def test_an_id_near_a_known_one_finds_nothing(scene: Scene) -> None:
    known = uuid.UUID(scene.job.job_id).int
    neighbours = [known + step for step in (0, 1, -1, 2**16, -(2**16), 2**80, -(2**80), 2**127)]
    for number in (*neighbours, 0, 2**128 - 1):
        not_found(scene.client, str(uuid.UUID(int=number % 2**128)))
    not_found(scene.client, scene.job.job_id.upper())
    assert len(scene.world.events(scene.job.job_id)) == 1


def test_the_ids_of_jobs_made_together_can_not_be_counted_up(scene: Scene) -> None:
    client = scene.world.client(scene.victim)
    ids = [
        uuid.UUID(client.create(dataset_id=scene.victims_dataset).job.job_id).int & (2**62 - 1)
        for _ in range(20)
    ]
    # 62 bits of chance in each: of two made in one millisecond, none follows from the other.
    assert all(abs(one - other) > 2**32 for one, other in itertools.combinations(ids, 2))


@pytest.mark.parametrize("level", [None, Level.READ])
def test_who_may_not_cancel_a_job_neither_locks_it_nor_waits_for_it(
    stored_world: World, level: Level | None
) -> None:
    dataset = stored_world.dataset()
    owner, other = stored_world.user(grants={dataset: Level.WRITE}), stored_world.user()
    if level is not None:
        stored_world.access.grant(other.soeid, dataset, level)
    new = NewJob(
        dataset_id=dataset,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "a"},
        payload_bytes=17,
        request_hash=b"",
    )
    made: Any = JobService(stored_world.database).create_jobs([CreateRequest(owner.caller, new)])[0]
    job_id = made.job.job_id
    # Waits for a lock longer than a statement may take: it would fail rather than answer late.
    patient = Database(stored_world.database_url, pool_size=1, statement_seconds=3, lock_seconds=60)
    try:
        with connect(stored_world.database_url) as holder, holder.transaction():
            holder.execute("SELECT 1 FROM jobs WHERE job_id = %s FOR UPDATE", (job_id,))
            answer = JobService(patient).cancel_jobs([CancelRequest(other.caller, job_id, None)])[0]
    finally:
        patient.close()
    assert isinstance(answer, JobNotFound if level is None else JobPermissionDenied)
    assert isinstance(answer, JobsError)


def test_a_page_token_shows_nothing_but_ones_own(scene: Scene) -> None:
    victim = scene.world.client(scene.victim)
    for _ in range(3):
        victim.create(dataset_id=scene.victims_dataset)
        scene.client.create(dataset_id=scene.thiefs_dataset)
    token = victim.list(page_size=1).next_page_token
    own = {job.job_id for job in scene.client.list().jobs}
    stolen = scene.client.list(page_size=100, page_token=token, include_total_size=True)
    assert {job.job_id for job in stolen.jobs} < own
    assert stolen.total_size == len(own)
    for fields in ({"filter": {"dataset_id": scene.victims_dataset}}, {"view": jobs_pb2.JOB_VIEW_FULL}):
        with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
            scene.client.list(page_token=token, **fields)


def test_no_filter_tells_of_hidden_jobs(scene: Scene) -> None:
    nobody = scene.world.user()
    real = {
        "user_id": scene.victim.user_id,
        "user_soeid": scene.victim.soeid,
        "dataset_id": scene.victims_dataset,
        "external_id": scene.job.external_id,
        "statuses": [jobs_pb2.JOB_STATUS_PENDING],
    }
    made_up = {
        "user_id": nobody.user_id,
        "user_soeid": nobody.soeid,
        "dataset_id": 999_999,
        "external_id": "nobody's",
        "statuses": [jobs_pb2.JOB_STATUS_FAILED],
    }
    # The statuses alone would show the thief its own job.
    keys = [
        keys for size in (1, 2, 3) for keys in itertools.combinations(real, size) if keys != ("statuses",)
    ]
    for names in keys:
        if {"user_id", "user_soeid"} <= set(names):
            continue
        for more in ({}, {"skip": 1}, {"view": jobs_pb2.JOB_VIEW_FULL}, {"page_size": 1}):
            answers = [
                scene.client.list(
                    filter={name: values[name] for name in names}, include_total_size=True, **more
                )
                for values in (real, made_up)
            ]
            assert answers[0] == answers[1] == jobs_pb2.ListJobsResponse(total_size=0), names


def test_a_number_beyond_the_cap_tells_nothing(scene: Scene) -> None:
    scene.world.sql.execute(
        """INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority,
                             payload_bytes, run_parameters, external_id)
           SELECT gen_random_uuid(), 'IMPORT', 'PENDING', %s, %s, %s, 0, 2, '{}', 'many'
             FROM generate_series(1, 10001)""",
        (scene.victims_dataset, scene.victim.user_id, scene.victim.user_id),
    )
    try:
        for wanted in ({}, {"external_id": "many"}, {"dataset_id": scene.victims_dataset}):
            answer = scene.client.list(filter=wanted, include_total_size=True)
            assert answer.total_size == len(answer.jobs) <= 1
            assert not answer.total_size_capped
            assert not answer.next_page_token
        seen = scene.world.client(scene.victim).list(include_total_size=True)
        assert (seen.total_size, seen.total_size_capped) == (10_000, True)
    finally:
        scene.world.sql.execute("DELETE FROM jobs WHERE dataset_id = %s", (scene.victims_dataset,))


SPELLINGS: dict[str, Callable[[str], Metadata]] = {
    "binary": lambda soeid: (("x-on-behalf-of-bin", soeid.encode()),),
    "with another name": lambda soeid: (("x_on_behalf_of", soeid), ("on-behalf-of", soeid)),
    "of other proxies": lambda soeid: (("x-forwarded-user", soeid), ("x-remote-user", soeid)),
    "as the caller's id": lambda soeid: (("x-user-id", soeid), ("x-user-soeid", soeid), ("x-role", "admin")),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_of_the_header_makes_a_caller_somebody_else(scene: Scene, name: str) -> None:
    for soeid in (scene.victim.soeid, scene.world.user(Role.ADMIN).soeid):
        client = scene.client
        client.metadata += SPELLINGS[name](soeid)
        not_found(client, scene.job.job_id)
        assert client.create(dataset_id=scene.thiefs_dataset).job.user_soeid == scene.thief.soeid


@pytest.mark.parametrize("role", Role)
def test_two_headers_for_two_users_are_none(scene: Scene, role: Role) -> None:
    sender, other = scene.world.user(role), scene.world.user()
    judge = Judge(scene.world, scene.world.client(sender))
    for pair in itertools.product([scene.victim.soeid, other.soeid, sender.soeid], repeat=2):
        headers: Metadata = tuple(("x-on-behalf-of", soeid) for soeid in pair)
        for rpc in METHODS:
            answer = judge.send(rpc, message(rpc), metadata=judge.client.metadata + headers)
            assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ["x-on-behalf-of"])


def test_the_request_ids_of_others_tell_nothing(scene: Scene) -> None:
    request_id = str(uuid.uuid4())
    fields: dict[str, Any] = {"dataset_id": scene.victims_dataset, "request_id": request_id}
    world, program, other = scene.world, scene.world.user(Role.SERVICE), scene.world.user(Role.SERVICE)
    first = world.client(program, on_behalf_of=scene.victim).create(**fields).job
    # Whoever may write there, the same id makes another job; nobody else's is found, or in the way.
    world.access.grant(scene.thief.soeid, scene.victims_dataset, Level.WRITE)
    for client in (
        world.client(scene.victim),
        scene.client,
        world.client(program, on_behalf_of=scene.thief),
        world.client(other, on_behalf_of=scene.victim),
    ):
        planned = client.create(**fields, priority=1, validate_only=True)
        made = client.create(**fields, priority=1)
        assert (planned.replayed, made.replayed) == (False, False)
        assert made.job.job_id != first.job_id
    # And without the right, the id that is taken is answered like one that is free.
    world.access.revoke(scene.thief.soeid, scene.victims_dataset)
    for taken in (request_id, str(uuid.uuid4())):
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as refusal:
            scene.client.create(**(fields | {"request_id": taken}))
        assert set(refusal.it.metadata) == {"dataset_id", "required_permission"}


def test_a_repeated_request_needs_a_caller_who_still_counts(scene: Scene) -> None:
    world, program, request_id = scene.world, scene.world.user(Role.SERVICE), str(uuid.uuid4())
    fields: dict[str, Any] = {"dataset_id": scene.victims_dataset, "request_id": request_id}
    client = world.client(program, on_behalf_of=scene.victim)
    first = client.create(**fields).job
    assert client.create(**fields).job == first
    world.access.put_user(program.soeid, Role.USER)
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED") as refusal:
        client.create(**fields)
    assert first.job_id not in str(refusal.it)
    world.access.put_user(program.soeid, Role.SERVICE)
    world.access.put_user(scene.victim.soeid, Role.SERVICE)
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        client.create(**fields)
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (program.user_id,))
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        client.create(**fields)


def test_validate_only_tells_no_more_than_a_create(scene: Scene) -> None:
    sources = [{"dataset_id": number, "alias": "a"} for number in (scene.victims_dataset, 999_999)]
    sql = jobs_pb2.RUN_TYPE_SQL_TRANSFORM
    attempts: list[dict[str, Any]] = [
        {"dataset_id": scene.victims_dataset},
        {"dataset_id": 999_999},
        {
            "dataset_id": scene.victims_dataset,
            "run_type": jobs_pb2.RUN_TYPE_EXPLORATION,
            "run_parameters": {},
        },
        *(
            {
                "dataset_id": scene.thiefs_dataset,
                "run_type": sql,
                "run_parameters": {"sql": "select", "sources": [source]},
            }
            for source in sources
        ),
    ]
    for fields in attempts:
        refusals = []
        for validate_only in (True, False):
            with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as refusal:
                scene.client.create(**fields, validate_only=validate_only)
            refusals.append(refusal.it)
        assert refusals[0] == refusals[1]


def test_no_users_id_is_told_by_the_parameters(scene: Scene) -> None:
    for number in (scene.victim.user_id, 10**9):
        parameters = {"file_path": "a", "user_id": number}
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            scene.client.create(dataset_id=scene.thiefs_dataset, run_parameters=parameters)
        assert list(refusal.it.violations) == ["run_parameters.user_id"]
        assert str(number) not in refusal.it.message


SQL = [
    "' OR '1'='1",
    "'; DROP TABLE jobs; --",
    "\\'; SELECT pg_sleep(30); --",
    '"; DELETE FROM users; --',
    "$$; SELECT 1; $$",
    "%s %(viewer)s :viewer {viewer}",
    "\\x00 \\u0000 E'\\\\'",
    "1e999999",
    "9" * 120,
    "\u02bc\uff07 OR 1=1",
    "\ud7ff\ue000\ufffe",
]


@pytest.mark.parametrize("text", SQL, ids=ascii)
def test_sql_in_any_text_is_only_text(scene: Scene, text: str) -> None:
    parameters = {"file_path": text, text: {text: [text, 1]}}
    fields = {"description": text, "external_id": text}
    job = scene.client.create(dataset_id=scene.thiefs_dataset, run_parameters=parameters, **fields).job
    assert scene.client.get(job.job_id) == job
    assert (job.description, job.external_id, job.run_parameters["file_path"]) == (text, text, text)
    listed = scene.client.list(filter={"external_id": text, "dataset_id": scene.thiefs_dataset})
    assert [each.job_id for each in listed.jobs] == [job.job_id]
    assert scene.client.cancel(job.job_id, text).cancel_reason == text
    assert scene.world.client(scene.victim).get(scene.job.job_id) == scene.job


def test_health_and_reflection_tell_nothing_of_the_data(scene: Scene) -> None:
    call: Any = scene.world.channel().stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="jobs.v1.JobsService"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="../../etc/passwd"),
        reflection_pb2.ServerReflectionRequest(file_by_filename=scene.job.external_id),
    ]
    answers = b"".join(call(iter([each.SerializeToString() for each in asked]), timeout=10))
    health: Any = scene.world.channel().unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.RpcError) as caught:
        health(b"\x0a" + bytes([len(scene.victim.soeid)]) + scene.victim.soeid.encode(), timeout=10)
    shown = answers + str(caught.value).encode()
    for secret in (scene.victim.soeid, scene.job.external_id, scene.job.job_id, "root:"):
        assert secret.encode() not in shown.replace(asked[3].SerializeToString(), b"")


def test_the_list_above_names_the_tests_that_there_are() -> None:
    named = set(re.findall(r"test_\w+\b(?!\.py)", __doc__ or ""))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_the_list_above_names_the_tests_that_there_are"}
    tests = Path(__file__).parents[1]
    for name in re.findall(r"[\w/]+\.py", __doc__ or ""):
        assert (tests / name).exists() or (tests / "api" / name).exists(), name
