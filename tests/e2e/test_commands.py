"""The command line as an operator uses it: before the first start, beside the service, and without it."""

import json
import os
import re
import shlex
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service import cli
from jobs_service.core.access_service import AccessService
from jobs_service.model.caller import Level
from jobs_service.transport.tokens import DEVELOPMENT_KEY_FILE
from tests.conftest import service_settings
from tests.e2e.clients import BufCurl
from tests.e2e.demo import ALICE, BOB, Demo
from tests.e2e.test_exit_codes import newer_schema
from tests.support.client import Client, refused
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess, run_command
from tests.support.world import World

TOKEN_COMMAND = "$(.venv/bin/jobs-service token al00001)"  # as a shell runs it
COMMANDS = (
    ("serve", "--migrate"),
    ("migrate", "schema"),
    ("check", "could serve"),
    ("health", "JOBS_LISTEN"),
    ("token", "12 hours"),
    ("user add", "--role"),
    ("dataset add", "name"),
    ("grant", "{read,write,admin}"),
    ("revoke", "dataset_id"),
    ("grant-run-type", "SQL_TRANSFORM"),
    ("revoke-run-type", "SQL_TRANSFORM"),
    ("user delete", "without an owner"),
    ("dataset delete", "cancel its jobs"),
    ("dataset limit", "N|none"),
    ("permissions", "--dataset"),
)


@contextmanager
def calling(demo: Demo, soeid: str, *, on_behalf_of: str | None = None) -> Iterator[Client]:
    """A client with the token that the command makes."""
    with grpc.insecure_channel(demo.target) as channel:
        yield Client(channel, demo.token(soeid), on_behalf_of=on_behalf_of)


@contextmanager
def serving(database_url: str, folder: Path, *arguments: str, **settings: str) -> Iterator[World]:
    """The command on a database that is there already, and a world to call it from."""
    service = ServiceProcess(folder, service_settings(database_url, folder) | settings, *arguments)
    try:
        port = service.started().target.rpartition(":")[2]
        world = World(database_url, f"127.0.0.1:{port}")
        try:
            yield world
        finally:
            world.close()
    finally:
        code = service.stop()
    assert code == 0


def create_a_job(world: World) -> str:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    return world.client(user).create(dataset_id=dataset).job.job_id


@pytest.mark.parametrize(("command", "told"), COMMANDS)
def test_each_command_explains_itself(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert shown.startswith(f"usage: jobs-service {command}")
    assert told in shown


def test_the_overall_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^ +{command.split()[0]}\b", shown, re.M) for command, _ in COMMANDS)


def test_a_token_made_before_the_first_start_is_good_afterwards(fresh: Path) -> None:
    data_dir = fresh / "data"
    made = run_command("token", "AL00001", settings={"JOBS_DATA_DIR": str(data_dir)})
    assert (made.returncode, made.stderr) == (0, "")
    (token,) = made.stdout.splitlines()
    assert len(token.split(".")) == 3
    key_file = data_dir / DEVELOPMENT_KEY_FILE
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = key_file.read_bytes()
    with Demo(fresh) as demo, grpc.insecure_channel(demo.target) as channel:
        assert Client(channel, token).create().job.user_soeid == ALICE
    assert key_file.read_bytes() == key


def test_a_token_is_all_that_the_token_command_prints_beside_the_service(demo: Demo) -> None:
    made = demo.command("token", ALICE)
    assert (made.returncode, made.stderr, made.stdout.count("\n")) == (0, "", 1)
    with grpc.insecure_channel(demo.target) as channel:
        assert Client(channel, made.stdout.strip()).list() is not None


def test_the_printed_lines_can_be_pasted(demo: Demo) -> None:
    lines = demo.service.out_file.read_text().splitlines()
    calls = [shlex.split(line) for line in lines if line.strip().startswith("grpcurl ")]
    assert [call[-1].rpartition("/")[2] for call in calls] == [
        *("CreateJob", "ListJobs", "GetJob", "GetJobStatus", "CancelJob")
    ]
    client, job_id = BufCurl(demo.target), ""
    for *_, header, _, data, target, method in calls:
        assert header == f"authorization: Bearer {TOKEN_COMMAND}"
        assert target == demo.target
        request = json.loads(data.replace("JOB_ID", job_id))
        made = header.replace(TOKEN_COMMAND, demo.token(ALICE)).removeprefix("authorization: ")
        answer = client.call(method.rpartition("/")[2], request, {"authorization": made})
        job_id = job_id or answer["job"]["jobId"]


def test_changes_beside_the_service_count_from_the_next_call_on(demo: Demo) -> None:
    with calling(demo, "us00100") as user, refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        user.create(dataset_id=100)
    assert demo.done("user", "add", "US00100", "--role", "user") == "user us00100 has id 6 and role user"
    with calling(demo, "us00100") as user:
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
            user.create(dataset_id=100)
        assert demo.done("dataset", "add", "100", "orders of 2026") == "data set 100 is called orders of 2026"
        assert demo.done("grant", "us00100", "100", "write") == "us00100 has write on data set 100"
        assert user.create(dataset_id=100).job.dataset_name == "orders of 2026"
        said = [demo.done("revoke", "us00100", "100") for _ in range(2)]
        assert said == [
            f"us00100 has no permission on data set 100{repeated}" for repeated in ("", ", as before")
        ]
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
            user.create(dataset_id=100)
    with calling(demo, "us00100", on_behalf_of=ALICE) as program:
        with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
            program.create()
        demo.done("user", "add", "us00100", "--role", "service")
        assert program.create().job.creator_soeid == "us00100"
    assert demo.done("grant-run-type", "us00100", "SAMPLING") == "us00100 may work on SAMPLING"


def test_what_was_added_can_be_limited_shown_and_deleted_beside_the_service(demo: Demo) -> None:
    user = demo.done("user", "add", "us00300", "--role", "user")
    for command, said in (
        ("dataset add 300 invoices", "data set 300 is called invoices"),
        ("dataset limit 300 2", "data set 300 has at most 2 running jobs"),
        ("revoke-run-type us00300 IMPORT", "us00300 may not work on IMPORT, as before"),
        ("grant us00300 300 write", "us00300 has write on data set 300"),
        ("permissions --user US00300", f"{user}\nus00300 has write on data set 300"),
        (
            "permissions --dataset 300",
            "data set 300 is called invoices\ndata set 300 has at most 2 running jobs\n"
            "us00300 has write on data set 300",
        ),
        ("dataset limit 300 none", "data set 300 has no limit of running jobs"),
    ):
        assert demo.done(*command.split()) == said
    with calling(demo, "us00300") as client:
        job_id = client.create(dataset_id=300).job.job_id
        answers = [demo.done("dataset", "delete", "300") for _ in range(2)]
        assert answers == [f"there is no data set 300{repeated}" for repeated in ("", ", as before")]
        job = client.get(job_id)
        assert (job.status, job.cancel_reason) == (jobs_pb2.JOB_STATUS_CANCELLED, "data set 300 was deleted")
        assert job.cancelled_by_soeid == ""
        answers = [demo.done("user", "delete", "US00300") for _ in range(2)]
        assert answers == [f"there is no user us00300{repeated}" for repeated in ("", ", as before")]
        with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
            client.get(job_id)


def test_changes_without_the_service_count_from_its_start_on(fresh: Path) -> None:
    settings = {"JOBS_DATA_DIR": str(fresh / "data")}
    for command, said in (
        ("user add us00200 --role user", "user us00200 has id 6 and role user"),
        ("dataset add 200 orders", "data set 200 is called orders"),
        ("grant us00200 200 write", "us00200 has write on data set 200"),
        ("revoke bo00001 1", "bo00001 has no permission on data set 1"),
        ("grant-run-type sv00001 IMPORT", "sv00001 may work on IMPORT"),
    ):
        result = run_command(*command.split(), settings=settings)
        assert (result.returncode, result.stdout.strip()) == (0, said), result.stderr
        assert not (fresh / "data/postgres/postmaster.pid").exists()
    with Demo(fresh) as demo:
        with calling(demo, "us00200") as user:
            assert user.create(dataset_id=200).job.user_id == 6
        with calling(demo, BOB) as bob, refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
            bob.create(run_type="RUN_TYPE_EXPLORATION", run_parameters={"table_key": "primary"})


def test_an_empty_database_is_served_with_migrate(postgres_18: PostgresServer, fresh: Path) -> None:
    with serving(postgres_18.blank_database(), fresh, "--migrate") as world:
        assert create_a_job(world)
        assert AccessService(world.database).find_user_ids([ALICE]) == [None], (
            "a demo is for the embedded database alone"
        )


def test_migrate_makes_an_empty_database_one_that_can_be_served(
    postgres_18: PostgresServer, fresh: Path
) -> None:
    url = postgres_18.blank_database()
    result = run_command("migrate", settings=service_settings(url, fresh))
    assert (result.returncode, result.stdout) == (0, "the schema is up to date\n")
    with serving(url, fresh) as world:
        assert create_a_job(world)


def test_a_later_schema_that_says_so_is_served(postgres_18: PostgresServer, fresh: Path) -> None:
    url = newer_schema(postgres_18.new_database(), oldest_release="0.1.0")
    with serving(url, fresh, "--migrate") as world:
        assert create_a_job(world)


def test_a_listener_beyond_loopback_is_served_where_it_is_said_to_be_safe(
    postgres_18: PostgresServer, fresh: Path
) -> None:
    settings = {"JOBS_LISTEN": "0.0.0.0:0", "JOBS_INSECURE_LISTEN": "on"}
    with serving(postgres_18.new_database(), fresh, **settings) as world:
        assert create_a_job(world)


def test_control_c_ends_the_service_and_its_postgres_in_good_order(fresh: Path) -> None:
    with Demo(fresh) as demo:
        assert demo.service.out_file.read_text()
        # The terminal sends it to the whole process group.
        os.killpg(demo.service.process.pid, signal.SIGINT)
        assert demo.service.process.wait(30) == 0
        assert not (demo.data_dir / "postgres/postmaster.pid").exists()
    assert "Traceback" not in demo.service.log_file.read_text()
