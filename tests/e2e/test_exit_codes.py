"""How each command ends: its exit code, and the one line that says why it failed."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jobs_service import cli
from jobs_service.cli import ExitCode
from tests.conftest import service_settings
from tests.e2e.demo import ALICE, PROGRAM, Demo
from tests.support.certificates import issue
from tests.support.postgres import PostgresServer, connect
from tests.support.service import run_command

OF_KUBERNETES = {"JOBS_PORT": "tcp://10.0.0.1:1", "JOBS_PORT_50051_TCP": "a", "JOBS_SERVICE_HOST": "b"}
GONE = "postgresql://jobs:secret@127.0.0.1:1/jobs"


@dataclass(frozen=True)
class Run:
    """One command. where: a key of `places`. Texts may hold {port} and {pid} of the running service.

    {other_key} is a private key that belongs to nothing.
    """

    command: str
    where: str
    code: ExitCode
    says: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.command}, {self.says}"


REFUSED = (
    Run("serve", "fresh", ExitCode.CONFIGURATION, "JOBS_LISTN is no setting", {"JOBS_LISTN": "x"}),
    Run(
        "migrate", "fresh", ExitCode.CONFIGURATION, "JOBS_REFLECTION='no' must be", {"JOBS_REFLECTION": "no"}
    ),
    Run("serve", "fresh", ExitCode.CONFIGURATION, "JOBS_LISTEN is not a loop", {"JOBS_LISTEN": "0.0.0.0:0"}),
    Run("serve", "external", ExitCode.CONFIGURATION, "JOBS_INSECURE_LISTEN=on", {"JOBS_LISTEN": "0.0.0.0:0"}),
    Run("serve", "external", ExitCode.CONFIGURATION, "JOBS_JWT_KEY_FILE is not", {"JOBS_JWT_KEY_FILE": ""}),
    Run("check", "external", ExitCode.CONFIGURATION, "can't be read", {"JOBS_JWT_KEY_FILE": "/nowhere"}),
    Run("serve", "tls", ExitCode.CONFIGURATION, "belong together", {"JOBS_TLS_KEY_FILE": ""}),
    Run("serve", "tls", ExitCode.CONFIGURATION, "can't be read", {"JOBS_TLS_CERT_FILE": "/nowhere"}),
    Run("check", "tls", ExitCode.CONFIGURATION, "is not the key of", {"JOBS_TLS_KEY_FILE": "{other_key}"}),
    Run("serve", "tls", ExitCode.CONFIGURATION, "is not the key of", {"JOBS_TLS_KEY_FILE": "{other_key}"}),
    Run("serve", "tls", ExitCode.CONFIGURATION, "holds no PEM", {"JOBS_TLS_CLIENT_CA_FILE": "{other_key}"}),
    Run("check", "tls", ExitCode.CONFIGURATION, "needs JOBS_TLS", {"JOBS_TLS_CLIENT_CA_FILE": ""}),
    Run("token al00001", "tls", ExitCode.CONFIGURATION, "are both set", {"JOBS_JWT_JWKS_FILE": "/a"}),
    Run(
        *("serve", "tls", ExitCode.CONFIGURATION, "is no JWKS"),
        {"JOBS_JWT_JWKS_FILE": "{other_key}", "JOBS_JWT_KEY_FILE": ""},
    ),
    Run("serve", "tls", ExitCode.PORT, "127.0.0.1:{port}", {"JOBS_MTLS_LISTEN": "127.0.0.1:{port}"}),
    Run("health", "tls", ExitCode.CONFIGURATION, "can't be read", {"JOBS_TLS_CERT_FILE": "/nowhere"}),
    Run(
        "migrate", "external", ExitCode.CONFIGURATION, "JOBS_DATABASE_URL", {"JOBS_DATABASE_URL": "mysql://a"}
    ),
    Run(f"token {ALICE}", "public key", ExitCode.CONFIGURATION, "a public key can't sign tokens"),
    Run("serve", "gone", ExitCode.DATABASE, "The database is not available"),
    Run("migrate", "gone", ExitCode.DATABASE, "The database is not available"),
    Run("check", "gone", ExitCode.DATABASE, "The database is not available"),
    Run("serve", "empty", ExitCode.SCHEMA, "the schema is empty"),
    Run("check", "empty", ExitCode.SCHEMA, "run 'jobs-service migrate'"),
    Run(f"user add {ALICE} --role user", "empty", ExitCode.SCHEMA, "the schema is empty"),
    Run("serve --migrate", "too new", ExitCode.SCHEMA, "needs release 99.0.0 or newer"),
    Run("migrate", "too new", ExitCode.SCHEMA, "the schema is at 9999"),
    Run("migrate", "held", ExitCode.SCHEMA, "(canceling statement due to lock timeout): run it again"),
    Run("serve", "external", ExitCode.PORT, "127.0.0.1:{port}", {"JOBS_LISTEN": "127.0.0.1:{port}"}),
    Run("serve", "external", ExitCode.PORT, "127.0.0.1:{port}", {"JOBS_METRICS_LISTEN": "127.0.0.1:{port}"}),
    Run("serve", "running", ExitCode.DATA_FOLDER, "in use by process {pid}", {"JOBS_LISTEN": "127.0.0.1:0"}),
    Run("serve", "fresh", ExitCode.DATA_FOLDER, "a folder that others use", {"JOBS_DATA_DIR": "/"}),
    Run("grant us99999 1 read", "running", ExitCode.NOT_FOUND, "There is no user us99999"),
    Run(f"grant {ALICE} 99 read", "running", ExitCode.NOT_FOUND, "There is no data set 99"),
    Run("dataset limit 99 1", "running", ExitCode.NOT_FOUND, "There is no data set 99"),
    Run("permissions --user us99999", "running", ExitCode.NOT_FOUND, "There is no user us99999"),
    Run("permissions --dataset 99", "running", ExitCode.NOT_FOUND, "There is no data set 99"),
    Run("revoke-run-type us99999 IMPORT", "running", ExitCode.NOT_FOUND, "There is no user us99999"),
    Run("grant-run-type us99999 IMPORT", "running", ExitCode.NOT_FOUND, "There is no user us99999"),
)
MISUSED = (
    ("", "required: COMMAND"),
    ("cook", "invalid choice: 'cook'"),
    ("serve --fast", "unrecognized arguments: --fast"),
    ("token al001", "a SOEID is two letters and five digits"),
    (f"user add {ALICE}", "required: --role"),
    (f"user add {ALICE} --role boss", "invalid choice: 'boss'"),
    ("dataset add 0 sales", "a positive integer"),
    (f"dataset add 1 {'x' * 501}", "is longer than 500 bytes"),
    ("dataset limit 1 0", "a limit is a positive integer, or none"),
    (f"grant {ALICE} 1 owner", "invalid choice: 'owner'"),
    (f"revoke {ALICE}", "required: dataset_id"),
    (f"grant-run-type {PROGRAM} COOK", "invalid choice: 'COOK'"),
    ("health a b", "unrecognized arguments: b"),
)
NOT_SERVING = (
    Run("health", "fresh", ExitCode.NOT_SERVING, "UNAVAILABLE", {"JOBS_LISTEN": "127.0.0.1:1"}),
    Run("health jobs.v9.JobsService", "running", ExitCode.NOT_SERVING, "NOT_FOUND"),
)
DONE = (
    Run("--version", "fresh", ExitCode.OK, "0.1.0"),
    Run("check", "running", ExitCode.OK, "database: reachable"),
    Run("migrate", "running", ExitCode.OK, "the schema is up to date"),
    Run("health", "running", ExitCode.OK, "SERVING"),
    Run("health liveness", "running", ExitCode.OK, "SERVING"),
    Run(
        "check", "external", ExitCode.OK, "tokens are checked as HS256", {"JOBS_PORT": "tcp://10.0.0.1:50051"}
    ),
    Run("check", "tls", ExitCode.OK, "TLS: CN=jobs, good until", {"JOBS_LISTEN": "0.0.0.0:50051"}),
    Run("check", "external", ExitCode.OK, "fine", {"JOBS_PORT_50051_TCP": "a", "JOBS_SERVICE_HOST": "b"}),
    Run("check", "newer", ExitCode.OK, "its schema is one that this release can run on"),
)


def newer_schema(url: str, *, oldest_release: str) -> str:
    """Make a schema look like one of a later release, which this release can or can't run on."""
    with connect(url) as sql:
        sql.execute("UPDATE alembic_version SET version_num = '9999'")
        sql.execute("UPDATE schema_info SET oldest_release = %s", (oldest_release,))
    return url


@pytest.fixture(scope="module")
def held(postgres_18: PostgresServer) -> Iterator[str]:
    """A database in which another transaction is making one of the tables."""
    url = postgres_18.blank_database()
    with connect(url) as other, other.transaction(force_rollback=True):
        other.execute("CREATE TABLE jobs ()")
        yield url


@pytest.fixture(scope="module")
def places(
    demo: Demo, postgres_18: PostgresServer, held: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Settings, by the name of what the command finds with them."""
    folder = tmp_path_factory.mktemp("places")
    migrated = postgres_18.new_database()
    too_new = newer_schema(postgres_18.new_database(), oldest_release="99.0.0")
    newer = newer_schema(postgres_18.new_database(), oldest_release="0.0.9")
    public_key = folder / "public.pem"
    key = Ed25519PrivateKey.generate().public_key()
    other_key = folder / "other.key"
    certificate = issue("jobs")
    cert_file, key_file = certificate.write(folder, "server")
    other_key.write_bytes(issue("other").key)
    public_key.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return {
        "fresh": {"JOBS_DATA_DIR": str(folder / "fresh")},
        "running": demo.settings | {"JOBS_LISTEN": demo.target},
        "external": service_settings(migrated, folder) | {"JOBS_LISTEN": "127.0.0.1:0"},
        "public key": service_settings(migrated, folder) | {"JOBS_JWT_KEY_FILE": str(public_key)},
        "tls": service_settings(migrated, folder)
        | {
            "JOBS_TLS_CERT_FILE": str(cert_file),
            "JOBS_TLS_KEY_FILE": str(key_file),
            "JOBS_TLS_CLIENT_CA_FILE": str(cert_file),
            "JOBS_LISTEN": "127.0.0.1:0",
            "JOBS_MTLS_LISTEN": "127.0.0.1:0",
        },
        "empty": service_settings(postgres_18.blank_database(), folder),
        "held": service_settings(held, folder),
        "too new": service_settings(too_new, folder),
        "newer": service_settings(newer, folder),
        "gone": service_settings(GONE, folder),
    }


Ended = dict[int, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def ended(demo: Demo, places: dict[str, dict[str, str]]) -> Iterator[Ended]:
    """Every command of the tables, as many at a time as there are processors: a start takes a second."""
    other_key = places["tls"]["JOBS_TLS_KEY_FILE"].replace("server.key", "other.key")
    known = {"port": demo.target.rpartition(":")[2], "other_key": other_key}

    def start(run: Run) -> subprocess.CompletedProcess[str]:
        more = {name: text.format_map(known) for name, text in run.settings.items()}
        return run_command(*run.command.split(), settings=places[run.where] | more)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield {id(run): threads.submit(start, run) for run in (*REFUSED, *NOT_SERVING, *DONE)}


@pytest.mark.parametrize("run", REFUSED, ids=str)
def test_a_refused_command_says_why_in_one_line(run: Run, ended: Ended, demo: Demo) -> None:
    result = ended[id(run)].result()
    assert result.returncode == run.code, result
    # What was fine before the failure, check has said already.
    assert result.stdout == "" or run.command == "check"
    # What has gone wrong in detail stands in the log, one JSON object a line.
    (line,) = (line for line in result.stderr.splitlines() if line[:1] != "{")
    assert line.startswith("jobs-service: ")
    port, pid = demo.target.rpartition(":")[2], demo.service.process.pid
    assert run.says.format(port=port, pid=pid) in line


@pytest.mark.parametrize(("command", "says"), MISUSED)
def test_a_misused_command_shows_its_usage(
    command: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split())
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (ExitCode.USAGE, "")
    assert shown.err.startswith("usage: jobs-service")
    assert says in shown.err.splitlines()[-1]


@pytest.mark.parametrize("run", NOT_SERVING, ids=str)
def test_health_ends_with_a_code_of_its_own_where_nothing_serves(run: Run, ended: Ended) -> None:
    result = ended[id(run)].result()
    assert (result.returncode, result.stdout.strip()) == (run.code, run.says)


@pytest.mark.parametrize("run", DONE, ids=str)
def test_a_command_that_succeeds_says_so(run: Run, ended: Ended) -> None:
    result = ended[id(run)].result()
    assert (result.returncode, result.stderr) == (run.code, "")
    assert run.says in result.stdout


def test_every_other_exit_code_but_that_of_a_fault_is_in_the_tables() -> None:
    shown = {run.code for run in (*REFUSED, *NOT_SERVING, *DONE)}
    assert shown == set(ExitCode) - {ExitCode.FAILED, ExitCode.USAGE}
