"""The settings: what is read, what is refused, and what only serving demands."""

import re
from pathlib import Path

import pytest

from jobs_service.config import Address, Config, ConfigError, check_serving, load, variables

EXTERNAL = {"JOBS_DATABASE_URL": "postgresql://db/jobs"}
KEY = {"JOBS_JWT_KEY_FILE": "/etc/jobs/key"}
OPEN = {"JOBS_LISTEN": "0.0.0.0:50051"}
INSECURE = {"JOBS_INSECURE_LISTEN": "on"}
JWKS = {"JOBS_JWT_JWKS_FILE": "/etc/jobs/jwks"}
TLS = {"JOBS_TLS_CERT_FILE": "/etc/jobs/tls.crt", "JOBS_TLS_KEY_FILE": "/etc/jobs/tls.key"}
CLIENT_CA = {"JOBS_TLS_CLIENT_CA_FILE": "/etc/jobs/ca.crt"}
MTLS = TLS | CLIENT_CA | {"JOBS_MTLS_LISTEN": "127.0.0.1:50052"}
OPEN_MTLS = MTLS | {"JOBS_MTLS_LISTEN": "0.0.0.0:50052"}


def test_an_empty_environment_serves_the_embedded_postgres_on_loopback() -> None:
    config = load({})
    assert (config.listen, config.data_dir) == (Address("127.0.0.1", 50051), Path(".data"))
    assert (config.embedded, config.uses_development_key, config.reflection) == (True, True, True)
    check_serving(config)


def test_an_empty_value_counts_as_unset() -> None:
    assert load({name: "" for name, _, _ in variables()}) == load({})


def test_variables_of_other_programs_are_left_alone() -> None:
    assert load({"PATH": "/bin", "JOBSLISTEN": "x", "jobs_listn": "x", "MY_JOBS_X": "x"}) == load({})


@pytest.mark.parametrize(
    "name",
    [
        "JOBS_PORT",
        "JOBS_PORT_50051_TCP",
        "JOBS_PORT_50051_TCP_ADDR",
        "JOBS_SERVICE_HOST",
        "JOBS_SERVICE_PORT",
        "JOBS_SERVICE_PORT_GRPC",
        "JOBS_SERVICE_PORT_50051_TCP_PROTO",
        "JOBS_SERVICE_SERVICE_HOST",
    ],
)
def test_names_that_kubernetes_injects_are_accepted(name: str) -> None:
    assert load({name: "tcp://10.0.0.1:50051"}) == load({})


@pytest.mark.parametrize(
    "name",
    ["JOBS_", "JOBS_LISTN", "JOBS_listen", "JOBS_PORTS", "JOBS_SERVICES", "JOBS_SERVICE", "JOBS_XPORT"],
)
def test_an_unknown_variable_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is no setting"):
        load({name: "x"})


@pytest.mark.parametrize(
    ("text", "address", "target", "is_loopback"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051), "127.0.0.1:50051", True),
        ("127.8.0.1:0", Address("127.8.0.1", 0), "127.8.0.1:0", True),
        ("localhost:1", Address("localhost", 1), "localhost:1", True),
        ("[::1]:65535", Address("::1", 65535), "[::1]:65535", True),
        ("0.0.0.0:50051", Address("0.0.0.0", 50051), "0.0.0.0:50051", False),
        ("[::]:50051", Address("::", 50051), "[::]:50051", False),
        ("10.0.0.1:50051", Address("10.0.0.1", 50051), "10.0.0.1:50051", False),
        ("localhost.example.org:1", Address("localhost.example.org", 1), "localhost.example.org:1", False),
    ],
)
def test_an_address_is_host_and_port(text: str, address: Address, target: str, is_loopback: bool) -> None:
    listen = load({"JOBS_LISTEN": text}).listen
    assert (listen, listen.target, listen.is_loopback) == (address, target, is_loopback)


@pytest.mark.parametrize(
    ("text", "from_here"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        ("10.0.0.1:50051", "10.0.0.1:50051"),
    ],
)
def test_a_client_on_this_machine_calls_an_address_that_can_be_called(text: str, from_here: str) -> None:
    assert load({"JOBS_LISTEN": text}).listen.from_here == from_here


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("LISTEN", "127.0.0.1", "must be HOST:PORT"),
        ("LISTEN", ":50051", "must be HOST:PORT"),
        ("LISTEN", "127.0.0.1:", "must be HOST:PORT"),
        ("LISTEN", "127.0.0.1:-1", "must be HOST:PORT"),
        ("LISTEN", "127.0.0.1:65536", "must be HOST:PORT"),
        ("LISTEN", "127.0.0.1:http", "must be HOST:PORT"),
        ("METRICS_LISTEN", "9100", "must be HOST:PORT"),
        ("OTLP_ENDPOINT", "collector:4317", "must be http://HOST:PORT or https://HOST:PORT"),
        (
            "KEEP_JOBS_DAYS",
            "0.9",
            "must be a number from 1 to 36500: nothing is deleted before it is 24 hours",
        ),
        ("KEEP_HISTORY_DAYS", "nan", "must be a number from 1 to 36500: nothing is deleted before"),
        ("REFLECTION", "yes", "must be on or off"),
        ("REFLECTION", "ON", "must be on or off"),
        ("INSECURE_LISTEN", "1", "must be on or off"),
        ("LIST_THREADS", "0", "must be a number from 1 to 64"),
        ("LIST_THREADS", "7.5", "must be a number from 1 to 64"),
        ("LOG_LEVEL", "info", "must be DEBUG, INFO, WARNING or ERROR"),
        ("BATCH_ROWS", "1001", "must be a number from 1 to 1000"),
        ("MAX_WAITING", "many", "must be a number from 1 to 1e+06"),
        ("BATCH_SECONDS", "0", "must be a number from 0.1 to 600"),
        ("LOCK_SECONDS", "61", "must be a number from 0.05 to 60"),
        ("READ_SECONDS", "-1", "must be a number from 0.1 to 600"),
        ("JWT_LEEWAY", "nan", "must be a number from 0 to 300"),
        ("DRAIN_SECONDS", "inf", "must be a number from 0 to 600"),
        ("DRAIN_DELAY_SECONDS", "5s", "must be a number from 0 to 300"),
        ("KEEPALIVE_SECONDS", "0.5", "must be a number from 1 to 7200"),
        ("MAX_CONNECTION_AGE_SECONDS", "0", "must be a number from 1 to 86400"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_range(variable: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"JOBS_{variable}={value!r} {complaint}")):
        load({f"JOBS_{variable}": value})


def test_every_setting_takes_its_own_kind_of_value() -> None:
    config = load(
        {
            "JOBS_REFLECTION": "off",
            "JOBS_LIST_THREADS": "6",
            "JOBS_BATCH_SECONDS": "2.5",
            "JOBS_DRAIN_DELAY_SECONDS": "3",
            "JOBS_DATA_DIR": "/srv/jobs",
            "JOBS_JWT_ISSUER": "https://issuer",
        }
        | EXTERNAL
        | KEY
    )
    assert (config.reflection, config.list_threads, config.batch_seconds) == (False, 6, 2.5)
    assert (config.drain_delay_seconds, config.data_dir) == (3.0, Path("/srv/jobs"))
    assert (config.jwt_issuer, config.jwt_key_file) == ("https://issuer", Path("/etc/jobs/key"))
    assert (config.embedded, config.uses_development_key) == (False, False)


def test_every_variable_has_a_reason_and_a_default_that_loads() -> None:
    listed = variables()
    assert {name for name, _, _ in listed} == {f"JOBS_{name.upper()}" for name in Config.__slots__}
    assert all(about.endswith(".") for _, _, about in listed)
    assert load({name: default for name, default, _ in listed if default is not None}) == load({})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        KEY,
        EXTERNAL | KEY,
        {"JOBS_LISTEN": "[::1]:0"},
        OPEN | INSECURE | KEY,
        OPEN | INSECURE | EXTERNAL | KEY,
        JWKS,
        EXTERNAL | JWKS,
        TLS,
        MTLS,
        OPEN | TLS | KEY,
        OPEN | TLS | EXTERNAL | JWKS,
        OPEN | OPEN_MTLS | EXTERNAL | KEY,
        OPEN_MTLS | KEY,
    ],
)
def test_settings_that_may_serve(environment: dict[str, str]) -> None:
    check_serving(load(environment))


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        (OPEN | KEY, "JOBS_INSECURE_LISTEN=on"),
        (OPEN, "JOBS_INSECURE_LISTEN=on"),
        (OPEN | EXTERNAL | KEY, "JOBS_INSECURE_LISTEN=on"),
        (EXTERNAL, "JOBS_JWT_KEY_FILE is not set"),
        (OPEN | INSECURE, "JOBS_JWT_KEY_FILE is not set"),
        (OPEN | INSECURE | EXTERNAL, "JOBS_JWT_KEY_FILE is not set"),
        (OPEN | JWKS, "JOBS_TLS_CERT_FILE"),
        (OPEN | TLS, "JOBS_JWT_KEY_FILE is not set"),
        (OPEN_MTLS, "JOBS_JWT_KEY_FILE is not set"),
        (MTLS | EXTERNAL, "JOBS_JWT_KEY_FILE is not set"),
        (OPEN | OPEN_MTLS | EXTERNAL, "JOBS_JWT_KEY_FILE is not set"),
    ],
)
def test_settings_that_must_not_serve(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_serving(load(environment))


def test_commands_that_do_not_serve_load_what_must_not_serve() -> None:
    assert not load(OPEN | EXTERNAL).embedded


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        (KEY | JWKS, "JOBS_JWT_KEY_FILE and JOBS_JWT_JWKS_FILE are both set"),
        *(({name: "/etc/jobs/file"}, "set both or neither") for name in TLS),
        *((MTLS | {name: ""}, "set both or neither") for name in TLS),
        (MTLS | {"JOBS_TLS_CLIENT_CA_FILE": ""}, "JOBS_MTLS_LISTEN needs"),
        ({"JOBS_MTLS_LISTEN": "127.0.0.1:1"}, "JOBS_MTLS_LISTEN needs"),
        (CLIENT_CA, "set without JOBS_MTLS_LISTEN"),
        (TLS | CLIENT_CA, "set without JOBS_MTLS_LISTEN"),
        ({"JOBS_MTLS_LISTEN": "50052"}, "must be HOST:PORT"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(environment)


def test_a_direct_url_needs_the_url_that_it_is_another_way_to() -> None:
    with pytest.raises(ConfigError, match="JOBS_DIRECT_DATABASE_URL"):
        load({"JOBS_DIRECT_DATABASE_URL": "postgresql://db/jobs"})


@pytest.mark.parametrize(
    "url", ["http://hidden", "http://user:hidden@host:1", "user:hidden@host:1", "http//user:hidden"]
)
def test_a_url_that_is_refused_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^JOBS_OTLP_ENDPOINT must be") as refusal:
        load({"JOBS_OTLP_ENDPOINT": url})
    assert "hidden" not in str(refusal.value)
