"""Everything that can be set, read from the environment once, at start."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "JOBS_"
# What Kubernetes injects for a Service called jobs or jobs-service.
_OF_KUBERNETES = re.compile(r"JOBS_(PORT(_.*)?|SERVICE_.*)\Z")


class ConfigError(Exception):
    """A setting that can't be used. The message names the variable and says what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens. port 0: any free one."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """As gRPC takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def from_here(self) -> str:
        """As a client on this machine takes it: one can listen on any address, but not call any."""
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on, replaced
        return Address(local.get(self.host, self.host), self.port).target

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _address(text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _otlp_endpoint(text: str) -> str:
    if not re.match(r"https?://[^/@\s]+:\d+/?\Z", text):
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    return text


def _switch(text: str) -> bool:
    if text not in {"on", "off"}:
        raise ValueError("must be on or off")
    return text == "on"


def _log_level(text: str) -> str:
    if text not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return text


def _number(lowest: float, highest: float, kind: Callable[[str], float] = float) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise ValueError(f"must be a number from {lowest:g} to {highest:g}")
        return value

    return parse


def _days(text: str) -> float:
    try:
        return float(_number(1, 36500)(text))
    except ValueError as error:
        raise ValueError(f"{error}: nothing is deleted before it is 24 hours old") from None


def _setting(default: str | None, parse: Callable[[str], Any], about: str) -> Any:
    return field(metadata={"default": default, "parse": parse, "about": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings. Each field is the variable JOBS_<FIELD>; its metadata has default and reason."""

    listen: Address = _setting("127.0.0.1:50051", _address, "Where the service listens, HOST:PORT.")
    metrics_listen: Address | None = _setting(
        None,
        _address,
        "Where metrics and probes are served over HTTP, HOST:PORT, without credentials. Unset: nowhere.",
    )
    otlp_endpoint: str | None = _setting(
        None,
        _otlp_endpoint,
        "The collector that traces are sent to over OTLP/gRPC, http://HOST:PORT or https://HOST:PORT."
        " Unset: no traces.",
    )
    insecure_listen: bool = _setting(
        "off",
        _switch,
        "on: listen beyond loopback without TLS, because something in front (a mesh, a proxy) encrypts.",
    )
    tls_cert_file: Path | None = _setting(
        None,
        Path,
        "The service's certificate and what it was issued by, PEM, its own first. Set: both listeners speak"
        " TLS 1.2 or 1.3 alone. Read again when it changes, as all files of keys and certificates.",
    )
    tls_key_file: Path | None = _setting(
        None, Path, "The private key of that certificate, PEM, without a passphrase."
    )
    tls_client_ca_file: Path | None = _setting(
        None, Path, "The CAs, PEM, one of which must have issued the certificate of a caller with mTLS."
    )
    mtls_listen: Address | None = _setting(
        None,
        _address,
        "A second listener, HOST:PORT, where callers show a certificate whose URI `soeid:<SOEID>` says who"
        " they are; needs the three files. Unset: callers are known by tokens alone.",
    )
    jwt_key_file: Path | None = _setting(
        None,
        Path,
        "The key that bearer tokens are checked with: a PEM public key (RSA: RS256, P-256: ES256,"
        " Ed25519: EdDSA), or a secret of at least 32 bytes (HS256).",
    )
    jwt_jwks_file: Path | None = _setting(
        None,
        Path,
        "In place of that file, a JWKS with public keys of these kinds; a token's `kid` says which one.",
    )
    jwt_issuer: str | None = _setting(None, str, "What a token's `iss` must be. Unset: not checked.")
    jwt_audience: str | None = _setting(
        None, str, "What a token's `aud` must hold. Unset: a token with an `aud` is refused."
    )
    jwt_leeway: float = _setting(
        "30", _number(0, 300), "Seconds by which the clocks of issuer and service may differ."
    )
    database_url: str | None = _setting(
        None, str, "A Postgres 15 to 18, in SQLAlchemy's form. Unset: the embedded Postgres."
    )
    direct_database_url: str | None = _setting(
        None,
        str,
        "The same database without a pooler in between, for migrations and for news between replicas. Set"
        " where the first one leads to PgBouncer; unset: the first one.",
    )
    data_dir: Path = _setting(".data", Path, "The folder of the embedded Postgres and the development key.")
    pg_bin: Path | None = _setting(
        None, Path, "The folder with the Postgres programs. Unset: the wheel's, Debian's, PATH's."
    )
    reflection: bool = _setting("on", _switch, "off: hide the API's description.")
    list_threads: int = _setting(
        "8",
        _number(1, 64, int),
        "Lists that are read at the same time; more wait. The service holds as many connections to"
        " Postgres, and 15 more.",
    )
    batch_seconds: float = _setting(
        "10",
        _number(0.1, 600),
        "How long a statement of a batch, and 2 s more its transaction, may take, whoever is in it.",
    )
    lock_seconds: float = _setting(
        "1", _number(0.05, 60), "How long a batch waits for a row that somebody else holds."
    )
    read_seconds: float = _setting(
        "30", _number(0.1, 600), "How long a list may take for a caller without a deadline."
    )
    batch_rows: int = _setting("100", _number(1, 1000, int), "Calls that go into one transaction.")
    max_waiting: int = _setting(
        "2000",
        _number(1, 1_000_000, int),
        "Calls of one method that may wait; more are refused with RESOURCE_EXHAUSTED.",
    )
    max_wait_seconds: float = _setting(
        "10",
        _number(0.1, 600),
        "How long a call may wait for its turn, with or without a deadline: whoever waits longer is"
        " mostly gone, and serving it would make the next one late too.",
    )
    max_waiters: int = _setting(
        "2000",
        _number(0, 1_000_000, int),
        "Calls of workers that may wait for jobs, or for a job's end; more are refused with"
        " TOO_MANY_WAITERS. One that waits takes memory and nothing else.",
    )
    max_calls: int = _setting(
        "4000",
        _number(1, 1_000_000, int),
        "Calls in progress, health, reflection and those that wait apart: about a second of work, and room"
        " beside one method whose queue is full.",
    )
    max_request_bytes: int = _setting(
        "33554432",
        _number(4_194_304, 2**40, int),
        "Bytes of the requests in progress, as sent. Decoded they take up to 15 times as much.",
    )
    max_answer_bytes: int = _setting(
        "268435456",
        _number(4_194_304, 2**40, int),
        "Bytes of answers that clients have not taken yet; in memory about twice as many. Beyond it new"
        " calls are refused, and beyond a sixteenth of it those of the connection or caller that does"
        " not read.",
    )
    max_receive_seconds: float = _setting(
        "10",
        _number(1, 3600),
        "How long a client may take to send a request, before it is refused with OVERLOADED. While all"
        " places are taken, the oldest such call makes room for a newcomer after half a second.",
    )
    max_streams: int = _setting(
        "250",
        _number(1, 1_000_000, int),
        "Calls in progress on one connection; clients keep more back by themselves. No connection alone"
        " can fill the service. gRPC counts a call until it has forgotten it, a little longer than its"
        " client: close to the limit some are refused and sent again.",
    )
    keepalive_seconds: float = _setting(
        "60", _number(1, 7200), "A connection that is silent for this long is pinged."
    )
    max_connection_age_seconds: float = _setting(
        "1800",
        _number(1, 86400),
        "A connection that is this old is closed gracefully, so that clients spread over new replicas.",
    )
    drain_delay_seconds: float = _setting(
        "0",
        _number(0, 300),
        "How long calls are still taken after SIGTERM, health saying NOT_SERVING: what a load balancer"
        " needs to notice.",
    )
    drain_seconds: float = _setting("20", _number(0, 600), "How long calls in progress may take after that.")
    keep_jobs_days: float | None = _setting(
        None,
        _days,
        "Days after which jobs that have ended are deleted, at least 1; a `request_id` answers repeated"
        " requests for as long. Unset: never.",
    )
    keep_history_days: float | None = _setting(
        None,
        _days,
        "Days after which history is deleted, at least 1, that of jobs that are still there too. Unset:"
        " never.",
    )
    log_level: str = _setting(
        "INFO", _log_level, "DEBUG (health checks too), INFO, WARNING (no access log) or ERROR."
    )

    @property
    def embedded(self) -> bool:
        """Whether the service brings its own Postgres."""
        return self.database_url is None

    @property
    def uses_development_key(self) -> bool:
        """Whether tokens are checked with the key in the data folder."""
        return self.jwt_key_file is None and self.jwt_jwks_file is None

    @property
    def listeners(self) -> list[Address]:
        """Every address that is listened on."""
        return [self.listen] if self.mtls_listen is None else [self.listen, self.mtls_listen]


def variables() -> list[tuple[str, str | None, str]]:
    """Return name, default and reason of every variable."""
    return [
        (PREFIX + item.name.upper(), item.metadata["default"], item.metadata["about"])
        for item in fields(Config)
    ]


def load(environment: Mapping[str, str]) -> Config:
    """Read the settings. Raises ConfigError for a bad value, and for a JOBS_ variable that is none."""
    names = {PREFIX + item.name.upper() for item in fields(Config)}
    for name in environment:
        if name.startswith(PREFIX) and name not in names and not _OF_KUBERNETES.match(name):
            raise ConfigError(f"{name} is no setting of this service; see the README's table")
    values: dict[str, Any] = {}
    for item in fields(Config):
        name = PREFIX + item.name.upper()
        # Empty counts as unset: that is how a shell and most orchestrators unset a variable.
        text = environment.get(name) or item.metadata["default"]
        try:
            values[item.name] = None if text is None else item.metadata["parse"](text)
        except ValueError as error:
            # A URL may hold a password, one that is spelt wrongly too.
            shown = "" if "@" in text or "/" in text else f"={text!r}"
            raise ConfigError(f"{name}{shown} {error}") from None
    config = Config(**values)
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Check what no setting shows alone. Raises ConfigError."""
    if config.direct_database_url and not config.database_url:
        raise ConfigError("JOBS_DIRECT_DATABASE_URL is set without JOBS_DATABASE_URL: one database, two ways")
    if config.jwt_key_file and config.jwt_jwks_file:
        raise ConfigError("JOBS_JWT_KEY_FILE and JOBS_JWT_JWKS_FILE are both set: choose one")
    if (config.tls_cert_file is None) != (config.tls_key_file is None):
        raise ConfigError("JOBS_TLS_CERT_FILE and JOBS_TLS_KEY_FILE belong together: set both or neither")
    if config.mtls_listen and not (config.tls_cert_file and config.tls_client_ca_file):
        raise ConfigError(
            "JOBS_MTLS_LISTEN needs JOBS_TLS_CERT_FILE, JOBS_TLS_KEY_FILE and JOBS_TLS_CLIENT_CA_FILE"
        )
    if config.tls_client_ca_file and not config.mtls_listen:
        raise ConfigError(
            "JOBS_TLS_CLIENT_CA_FILE is set without JOBS_MTLS_LISTEN: JOBS_LISTEN asks for no certificates"
        )


def check_serving(config: Config) -> None:
    """Check what only serving demands. Raises ConfigError."""
    if not (config.listen.is_loopback or config.tls_cert_file or config.insecure_listen):
        raise ConfigError(
            "JOBS_LISTEN is not a loopback address and there is no TLS: anybody on the way could read"
            " tokens. Set JOBS_TLS_CERT_FILE and JOBS_TLS_KEY_FILE, or JOBS_INSECURE_LISTEN=on if"
            " something in front encrypts"
        )
    if config.uses_development_key and not (
        config.embedded and all(address.is_loopback for address in config.listeners)
    ):
        raise ConfigError(
            "JOBS_JWT_KEY_FILE is not set, nor JOBS_JWT_JWKS_FILE: the development key works only with the"
            " embedded Postgres and loopback listeners"
        )
