"""What the README says about running the service in production, done as it says."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from jobs_service.cli import ExitCode
from jobs_service.model.caller import Level
from jobs_service.storage.queue_tables import TURN_CLOCKS
from tests.conftest import service_settings
from tests.e2e.load import serving
from tests.support.client import Client
from tests.support.documents import blocks
from tests.support.postgres import POSTGRES_15, PostgresServer, connect
from tests.support.scrape import scrape
from tests.support.service import ServiceProcess, run_command, wait_until
from tests.support.world import World

FORBIDDEN = (
    "CREATE TABLE mine (x INT)",
    "ALTER TABLE jobs ADD COLUMN mine INT",
    "DROP TABLE jobs",
    "TRUNCATE jobs",
    "CREATE INDEX mine ON jobs (priority)",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
)


@pytest.fixture
def urls(postgres: PostgresServer) -> Iterator[tuple[str, str]]:
    """The URLs of the owner and of the user that serves, made by the README's own statements."""
    as_superuser, as_owner = blocks("The database's users", "sql")
    with connect(postgres.postgres.url()) as sql:
        # The tests' servers have a database of that name already.
        for statement in as_superuser.replace("DATABASE jobs", "DATABASE production").split(";")[:-1]:
            sql.execute(statement.encode())
    url = make_url(postgres.postgres.url()).set(database="production")
    owner = url.set(username="jobs_owner", password="choose one").render_as_string(hide_password=False)
    app = url.set(username="jobs_app", password="choose another").render_as_string(hide_password=False)
    with connect(owner) as sql:
        sql.execute(as_owner.encode())
    yield owner, app
    with connect(postgres.postgres.url()) as sql:
        sql.execute("DROP DATABASE production WITH (FORCE)")
        sql.execute("DROP ROLE jobs_app")
        sql.execute("DROP ROLE jobs_owner")


def migrate(owner_url: str) -> None:
    """As the README says, with the owner's URL."""
    migrated = run_command("migrate", settings={"JOBS_DATABASE_URL": owner_url})
    assert migrated.returncode == ExitCode.OK, migrated.stderr


def use_every_rpc(world: World) -> None:
    """As a user who may write a data set; the history is there as well."""
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    client: Client = world.client(user)
    job = client.create(dataset_id=dataset).job
    assert client.get(job.job_id).job_id == job.job_id
    assert client.status(job.job_id).version == 1
    assert client.cancel(job.job_id).cancelled_by_soeid == user.soeid
    assert [shown.job_id for shown in client.list().jobs] == [job.job_id]
    assert len(world.events(job.job_id)) == 2


def test_it_serves_as_a_user_who_owns_nothing_and_can_change_no_table(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    owner, app = urls
    migrate(owner)
    with serving(tmp_path, service_settings(app, tmp_path)) as service:
        world = World(app, service.target)
        use_every_rpc(world)
        world.close()
        assert service.stop() == ExitCode.OK
    with connect(app) as sql:
        for statement in FORBIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sql.execute(statement.encode())


def take_turns(app_url: str) -> None:
    """As claims and creates do it."""
    with connect(app_url) as sql:
        for clock in TURN_CLOCKS.values():
            taken = sql.execute("SELECT setval(%s, 7), pg_sequence_last_value(%s)", (clock.name, clock.name))
            assert taken.fetchone() == (7, 7)


def test_the_user_that_serves_may_take_turns_on_a_new_database_and_on_one_of_the_first_release(
    urls: tuple[str, str],
) -> None:
    owner, app = urls
    with connect(owner) as sql:
        # What the README of release 0.1.0 said gave nothing of the kind.
        sql.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON SEQUENCES FROM jobs_app")
    migrate(owner)
    take_turns(app)
    with connect(owner) as sql:
        [_, as_owner] = blocks("The database's users", "sql")
        sql.execute("DROP SCHEMA public CASCADE")
        sql.execute("CREATE SCHEMA public")
        sql.execute(as_owner.encode())
    migrate(owner)
    take_turns(app)


def dumped_and_restored(source: str, target: str) -> None:
    """With the commands that the README names."""
    url = make_url(source)
    dumping = [f"--host={url.query['host']}", f"--username={url.username}", str(url.database)]
    secret = {"PGPASSWORD": str(url.password), "PGPORT": str(url.port or 5432)}
    dump = subprocess.run(
        [POSTGRES_15 / "pg_dump", "-Fc", *dumping], env=secret, capture_output=True, timeout=60, check=True
    )
    url = make_url(target)
    restoring = [f"--host={url.query['host']}", f"--username={url.username}", f"--dbname={url.database}"]
    secret = {"PGPASSWORD": str(url.password), "PGPORT": str(url.port or 5432)}
    subprocess.run(
        [POSTGRES_15 / "pg_restore", "--exit-on-error", "--no-owner", *restoring],
        env=secret,
        input=dump.stdout,
        capture_output=True,
        timeout=60,
        check=True,
    )


def pending_jobs(service: ServiceProcess) -> float:
    """How many PENDING imports the metrics show."""
    return scrape(service).value("jobs_jobs", run_type="IMPORT", status="PENDING")


def test_a_dump_restored_into_a_newer_postgres_is_served_and_counted(
    postgres_15: PostgresServer, postgres_18: PostgresServer, tmp_path: Path
) -> None:
    old, new = postgres_15.new_database(), postgres_18.blank_database()
    world = World(old)
    # So that the dump's transaction ids are ones that the new cluster has not reached.
    for _ in range(20_000):
        world.sql.execute("SELECT pg_current_xact_id()")
    with serving(tmp_path, service_settings(old, tmp_path)) as service:
        before = World(old, service.target)
        dataset, request_id = before.dataset(), str(uuid.uuid4())
        user = before.user(grants={dataset: Level.WRITE})
        made = before.client(user).create(dataset_id=dataset, request_id=request_id)
        before.close()
    world.close()
    dumped_and_restored(old, new)
    with connect(new) as sql:
        sql.execute(blocks("Backup and restore", "sql")[0].encode())
    settings = service_settings(new, tmp_path) | {"JOBS_METRICS_LISTEN": "127.0.0.1:0"}
    with serving(tmp_path, settings) as service:
        after = World(new, service.target)
        client = after.client(user)
        assert client.create(dataset_id=dataset, request_id=request_id).job.job_id == made.job.job_id
        client.create(dataset_id=dataset)
        wait_until(lambda: pending_jobs(service) == 2, 30, "both jobs are counted")
        after.close()


def test_a_service_that_is_told_to_deletes_what_is_old_and_shows_it(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_18.new_database()
    with connect(url) as sql:
        sql.execute(
            """INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority,
                                 payload_bytes, run_parameters, end_time)
               SELECT gen_random_uuid(), 'IMPORT', 'COMPLETED', 1, 1, 1, 0, 2, '{}', now() - age::interval
                 FROM unnest(ARRAY['25 h', '23 h']) age;
               INSERT INTO job_events (type, job_id, run_type, actor_id, actor_soeid, status_after, time)
               SELECT 'COMPLETED', job_id, run_type, 1, 'al00001', status, end_time FROM jobs"""
        )
        settings = service_settings(url, tmp_path) | {"JOBS_METRICS_LISTEN": "127.0.0.1:0"}
        keeping = {"JOBS_KEEP_JOBS_DAYS": "1", "JOBS_KEEP_HISTORY_DAYS": "1"}
        with serving(tmp_path, settings | keeping) as service:
            wait_until(lambda: scrape(service).value("jobs_purged_jobs_total") == 1, 30, "the job")
            wait_until(lambda: scrape(service).value("jobs_purged_events_total") == 1, 30, "the event")
        left = sql.execute("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_events)").fetchone()
    assert left == (1, 1)


def test_the_user_that_serves_can_not_migrate(urls: tuple[str, str]) -> None:
    _, app = urls
    refused = run_command("migrate", settings={"JOBS_DATABASE_URL": app})
    assert refused.returncode == ExitCode.DATABASE
    assert refused.stderr == (
        "jobs-service: the database's user lacks a privilege: permission denied for schema public\n"
    )
