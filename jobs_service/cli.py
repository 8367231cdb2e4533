"""The command jobs-service."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum

from jobs_service import __version__, access_commands, app
from jobs_service.config import Address, Config, ConfigError, check_serving, load
from jobs_service.model.errors import DatabaseUnavailable, DatasetNotFound, JobsError, UserNotFound
from jobs_service.opening import SchemaUnusable, open_storage
from jobs_service.storage.driver_errors import MigrationHeldUp, PrivilegeMissing, UnusableDatabaseUrl
from jobs_service.storage.embedded import EmbeddedPostgresError
from jobs_service.storage.schema import MigrationLockTimeout
from jobs_service.telemetry.logs import configure_logging
from jobs_service.transport.certificates import parse_certificates
from jobs_service.transport.credentials import load_tls, token_keys
from jobs_service.transport.probe import ask_health, own_name
from jobs_service.transport.server import PortTaken
from jobs_service.transport.tokens import TokenKey, UnusableKey, make_token, read_file


class ExitCode(IntEnum):
    """How the command ends; the README's table says what to do."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    DATABASE = 4
    SCHEMA = 5
    PORT = 6
    DATA_FOLDER = 7
    NOT_FOUND = 8
    NOT_SERVING = 9


_EXIT_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIGURATION),
    (UnusableKey, ExitCode.CONFIGURATION),
    (DatabaseUnavailable, ExitCode.DATABASE),
    (SchemaUnusable, ExitCode.SCHEMA),
    (MigrationLockTimeout, ExitCode.SCHEMA),
    (MigrationHeldUp, ExitCode.SCHEMA),
    (PortTaken, ExitCode.PORT),
    (EmbeddedPostgresError, ExitCode.DATA_FOLDER),
    (UnusableDatabaseUrl, ExitCode.CONFIGURATION),
    (PrivilegeMissing, ExitCode.DATABASE),
    (UserNotFound, ExitCode.NOT_FOUND),
    (DatasetNotFound, ExitCode.NOT_FOUND),
    (JobsError, ExitCode.DATABASE),
)
_EPILOG = """\
Settings come from JOBS_ variables of the environment; the README lists them.

Exit codes: 0 done; 1 unexpected failure; 2 wrong usage; 3 bad configuration; 4 database
unreachable, or not allowed to this user; 5 schema behind, too new, being migrated, or its
migration held up; 6 port taken; 7 data folder in use or unusable; 8 no such user or data
set; 9 not serving."""
_Command = Callable[[Config, argparse.Namespace], ExitCode]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code; errors are a line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        config = load(os.environ)
        configure_logging(config.log_level)
        # Commands that can only succeed or raise return nothing.
        code = parsed.run(config, parsed) or ExitCode.OK
    except KeyboardInterrupt:
        code = ExitCode.OK
    except tuple(kind for kind, _ in _EXIT_CODES) as error:
        # A database that is away says why on our side alone; a caller would not be told.
        print(f"jobs-service: {error}{_cause(error)}", file=sys.stderr)
        code = next(number for kind, number in _EXIT_CODES if isinstance(error, kind))
    sys.exit(code)


def _cause(error: Exception) -> str:
    """The first line of what an error comes from, or else its kind; empty where it comes from none."""
    cause = error.__cause__
    if cause is None:
        return ""
    return f" ({next(iter(str(cause).splitlines()), type(cause).__name__)})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs-service",
        description="Creates, lists, shows, tracks and cancels the jobs of a data platform, over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_running(commands)
    access_commands.add_to(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: _Command, about: str
) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    added.set_defaults(run=run)
    return added


def _add_running(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = _add(commands, "serve", _serve, "serve until SIGTERM or Ctrl-C")
    serve.add_argument(
        "--migrate",
        action="store_true",
        help="bring the schema of JOBS_DATABASE_URL up to date first (the embedded one always is)",
    )
    _add(commands, "migrate", _migrate, "bring the schema of the database up to date")
    _add(
        commands,
        "check",
        _check,
        "say whether the service could serve with these settings, starting the embedded Postgres",
    )
    health = _add(commands, "health", _health, "ask the service at JOBS_LISTEN for its health")
    health.add_argument("service", nargs="?", default="", help="default: the service as a whole")
    token = _add(
        commands,
        "token",
        _token,
        "print a bearer token for a SOEID, good for 12 hours (needs a shared secret or the development key)",
    )
    token.add_argument("soeid", type=access_commands.soeid)


def _serve(config: Config, parsed: argparse.Namespace) -> ExitCode:
    def ready(port: int) -> None:
        if config.uses_development_key:
            print(_welcome(config, port), flush=True)

    app.serve(config, migrate=parsed.migrate, ready=ready)
    return ExitCode.OK


def _welcome(config: Config, port: int) -> str:
    """Lines to paste: the token is made when they run, so that none is left in a terminal's history."""
    call = f'grpcurl {_trust(config)} -H "authorization: Bearer $(.venv/bin/jobs-service token al00001)"'
    address = Address(config.listen.host, port).target
    rpc = f"{address} jobs.v1.JobsService"
    elsewhere = os.environ.get("JOBS_DATA_DIR")
    parameters = '{"dataset_id": 1, "run_type": "RUN_TYPE_IMPORT", "run_parameters": {"file_path": "a.csv"}}'
    return "\n".join(
        [
            f"Jobs Service {__version__} serves on {address}. Try:",
            "",
            # Where the development key is, for the shell that the lines are pasted into.
            *([f"  export JOBS_DATA_DIR={shlex.quote(elsewhere)}"] if elsewhere else []),
            f"  {call} -d '{parameters}' {rpc}/CreateJob",
            f"  {call} -d '{{\"page_size\": 10}}' {rpc}/ListJobs",
            f'  {call} -d \'{{"job_id": "JOB_ID"}}\' {rpc}/GetJob',
            f'  {call} -d \'{{"job_id": "JOB_ID"}}\' {rpc}/GetJobStatus',
            f'  {call} -d \'{{"job_id": "JOB_ID", "reason": "not needed"}}\' {rpc}/CancelJob',
            "",
        ]
    )


def _trust(config: Config) -> str:
    """What grpcurl is told about TLS: to trust the service's certificate, under its own name."""
    if config.tls_cert_file is None:
        return "-plaintext"
    name = own_name(parse_certificates(config.tls_cert_file, read_file(config.tls_cert_file))[0])
    return f"-cacert {shlex.quote(str(config.tls_cert_file))} -servername {shlex.quote(name)}"


def _migrate(config: Config, _: argparse.Namespace) -> ExitCode:
    with open_storage(config, migrate=True, exclusive=False):
        print("the schema is up to date")
    return ExitCode.OK


def _check(config: Config, _: argparse.Namespace) -> ExitCode:
    check_serving(config)
    keys = token_keys(config)
    print(f"settings: fine; tokens are checked as {', '.join(_key_name(key) for key in keys)}")
    tls = load_tls(config)
    if tls is not None:
        certificate = tls.certificate
        print(f"TLS: {certificate.subject}, {certificate.problem or f'good until {certificate.ends}'}")
    with open_storage(config, migrate=False, exclusive=False):
        print("database: reachable, its schema is one that this release can run on")
    return ExitCode.OK


def _key_name(key: TokenKey) -> str:
    return key.algorithm if key.kid is None else f"{key.algorithm} ({key.kid})"


def _health(config: Config, parsed: argparse.Namespace) -> ExitCode:
    answer = ask_health(config.listen.from_here, parsed.service, cert_file=config.tls_cert_file, seconds=3)
    print(answer)
    return ExitCode.OK if answer == "SERVING" else ExitCode.NOT_SERVING


def _token(config: Config, parsed: argparse.Namespace) -> ExitCode:
    key = token_keys(config)[0]
    print(make_token(key, parsed.soeid, issuer=config.jwt_issuer, audience=config.jwt_audience))
    return ExitCode.OK
