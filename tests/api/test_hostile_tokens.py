"""Credentials that are missing, forged, stale or somebody else's, and the keys that check them."""

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.client import Client, Metadata
from tests.support.judge import METHODS, Judge
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess, run_command
from tests.support.world import SECRET, World

PEM = serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
STRICT = {"JOBS_JWT_ISSUER": "https://issuer.example", "JOBS_JWT_AUDIENCE": "jobs", "JOBS_JWT_LEEWAY": "0"}
"""What the service with the RSA key asks for besides."""


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(PEM, SPKI))


def bearer(token: str, *, scheme: str = "Bearer") -> Metadata:
    return (("authorization", f"{scheme} {token}"),)


def claims(soeid: str, **changed: Any) -> dict[str, Any]:
    """Good for a minute; None takes a claim away."""
    now = int(time.time())
    content = {"sub": soeid, "iat": now, "exp": now + 60} | changed
    return {name: value for name, value in content.items() if value is not None}


def signed(content: Any, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """A token as no library would refuse to make it."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return jwt.api_jws.encode(data, key, algorithm=algorithm, headers=header or None)


def assembled(header: bytes, content: bytes, signature: bytes = b"") -> str:
    """Three parts, whatever they hold."""
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, content, signature))
    return b".".join(parts).decode()


def signed_by_hand(content: Any, secret: bytes, algorithm: str, **header: Any) -> str:
    """An HMAC token with a secret that the library refuses: a public key, one too short."""
    parts = (json.dumps(header | {"alg": algorithm}).encode(), json.dumps(content).encode())
    start = assembled(*parts).rpartition(".")[0]
    signature = hmac.digest(secret, start.encode(), f"sha{algorithm[2:]}")
    return assembled(*parts, signature)


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def soeid(world: World) -> str:
    return world.user().soeid


@pytest.fixture(scope="module")
def judge(world: World) -> Judge:
    """Sends no credentials but those that a test gives it."""
    return Judge(world, world.client(None))


def refused_as(judge: Judge, metadata: Metadata, reason: str) -> dict[str, str]:
    """Every RPC refuses these credentials for this reason; the metadata of the error."""
    for rpc in METHODS:
        answer = judge.send(rpc, b"", metadata=metadata)
        assert (answer.code, answer.refusal.reason) == ("UNAUTHENTICATED", reason)
    return answer.refusal.metadata


HEADERS: dict[str, tuple[Callable[[str], Metadata], str]] = {
    "none": (lambda token: (), "CREDENTIALS_MISSING"),
    "an empty header": (lambda token: (("authorization", ""),), "CREDENTIALS_MISSING"),
    "the scheme alone": (lambda token: (("authorization", "Bearer"),), "CREDENTIALS_MISSING"),
    "an empty bearer": (lambda token: bearer(""), "CREDENTIALS_MISSING"),
    "a bearer of spaces": (lambda token: bearer("    "), "CREDENTIALS_MISSING"),
    "a token without scheme": (lambda token: (("authorization", token),), "CREDENTIALS_MISSING"),
    "Basic": (lambda token: bearer(token, scheme="Basic"), "CREDENTIALS_MISSING"),
    "Token": (lambda token: bearer(token, scheme="Token"), "CREDENTIALS_MISSING"),
    "the scheme twice": (lambda token: bearer(f"Bearer {token}"), "CREDENTIALS_INVALID"),
    "two headers": (lambda token: bearer(token) * 2, "CREDENTIALS_INVALID"),
    "two schemes": (lambda token: bearer(token) + bearer(token, scheme="Basic"), "CREDENTIALS_INVALID"),
    "two tokens": (lambda token: bearer(f"{token}, {token}"), "CREDENTIALS_INVALID"),
    "a token in a token": (lambda token: bearer(f"{token}.{token}"), "CREDENTIALS_INVALID"),
    "a binary header": (lambda token: (("authorization-bin", token.encode()),), "CREDENTIALS_MISSING"),
    "another header": (lambda token: (("proxy-authorization", token),), "CREDENTIALS_MISSING"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_holds_no_token_is_refused(judge: Judge, soeid: str, name: str) -> None:
    make, reason = HEADERS[name]
    assert refused_as(judge, make(signed(claims(soeid))), reason) == {}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_read_in_any_letter_case(judge: Judge, soeid: str, scheme: str) -> None:
    metadata = bearer(signed(claims(soeid)), scheme=scheme)
    assert judge.send("ListJobs", b"", metadata=metadata).code == "OK"


def unsigned(soeid: str, header: bytes) -> str:
    return assembled(header, json.dumps(claims(soeid)).encode())


TOKENS: dict[str, Callable[[str], str]] = {
    "nonsense": lambda soeid: "nonsense",
    "two dots": lambda soeid: "..",
    "no base64": lambda soeid: "!!.!!.!!",
    "no JSON": lambda soeid: assembled(b"x", b"x", b"x"),
    "unsigned": lambda soeid: unsigned(soeid, b'{"alg":"none","typ":"JWT"}'),
    "unsigned, in other letters": lambda soeid: unsigned(soeid, b'{"alg":"nOnE"}'),
    "without algorithm": lambda soeid: unsigned(soeid, b"{}") + "AAAA",
    "with a list as algorithm": lambda soeid: assembled(b'{"alg":["HS256"]}', b"{}", b"x" * 32),
    "with a header of null": lambda soeid: assembled(b"null", b"{}", b"x" * 32),
    "with a deep header": lambda soeid: assembled(b'{"alg":' + b"[" * 3000, b"{}", b"x"),
    "with a deep object as header": lambda soeid: assembled(b'{"a":' * 1000, b"{}", b"x"),
    "with a long number as header": lambda soeid: assembled(b'{"alg":' + b"1" * 5000 + b"}", b"{}", b"x"),
    "without its signature": lambda soeid: signed(claims(soeid)).rpartition(".")[0] + ".",
    "without its last letter": lambda soeid: signed(claims(soeid))[:-1],
    "of another key": lambda soeid: signed(claims(soeid), SECRET + "x"),
    "of another hash": lambda soeid: signed(claims(soeid), SECRET * 2, "HS512"),
    "of the right key and another hash": lambda soeid: signed_by_hand(
        claims(soeid), SECRET.encode(), "HS384"
    ),
    "of an RSA key": lambda soeid: signed(claims(soeid), PRIVATE["RS256"], "RS256"),
    "with a key of its own in the header": lambda soeid: signed(
        claims(soeid), b"k" * 32, jwk={"kty": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode()}
    ),
    "with a key's path in the header": lambda soeid: signed_by_hand(
        claims(soeid), b"", "HS256", kid="../../../dev/null"
    ),
    "with something critical": lambda soeid: signed(claims(soeid), crit=["x"], x=1),
    "expired": lambda soeid: signed(claims(soeid, exp=int(time.time()) - 100)),
    "not yet valid": lambda soeid: signed(claims(soeid, nbf=int(time.time()) + 100)),
    "issued in the future": lambda soeid: signed(claims(soeid, iat=int(time.time()) + 100)),
    "without exp": lambda soeid: signed(claims(soeid, exp=None)),
    "with a word as exp": lambda soeid: signed(claims(soeid, exp="never")),
    "with infinity as exp": lambda soeid: signed(claims(soeid, exp=float("inf"))),
    "without sub": lambda soeid: signed(claims(soeid, sub=None)),
    "with a number as sub": lambda soeid: signed(claims(soeid, sub=5)),
    "with a sub that is no SOEID": lambda soeid: signed(claims(soeid, sub=soeid[:-1])),
    "with two subs": lambda soeid: signed(claims(soeid, sub=[soeid])),
    "with SQL as sub": lambda soeid: signed(claims(soeid, sub="' OR 1=1 --")),
    "with a NUL in its sub": lambda soeid: signed(claims(soeid, sub=soeid + "\0")),
    "for somebody else": lambda soeid: signed(claims(soeid, aud="other")),
    "whose payload is a list": lambda soeid: signed([claims(soeid)]),
    "whose payload is deep": lambda soeid: signed(b"[" * 3000),
    "of 7 KiB, forged": lambda soeid: signed(claims(soeid, pad="x" * 5000), SECRET + "x"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_that_is_not_good_is_refused(judge: Judge, soeid: str, name: str) -> None:
    assert refused_as(judge, bearer(TOKENS[name](soeid)), "CREDENTIALS_INVALID") == {}


def test_a_refused_token_is_not_repeated_in_the_log(
    judge: Judge, soeid: str, shared_service: tuple[str, ServiceProcess]
) -> None:
    token = signed(claims(soeid), SECRET + "x")
    refused_as(judge, bearer(token), "CREDENTIALS_INVALID")
    log = shared_service[1].log_file.read_text()
    assert token not in log
    assert token.rpartition(".")[2] not in log


@pytest.mark.parametrize("size", [1000, 5000])
def test_a_long_token_is_as_good_as_a_short_one(judge: Judge, soeid: str, size: int) -> None:
    metadata = bearer(signed(claims(soeid, pad="x" * size)))
    assert judge.send("ListJobs", b"", metadata=metadata).code == "OK"


def test_clocks_may_differ_by_the_leeway(judge: Judge, soeid: str) -> None:
    now = int(time.time())
    for changed in ({"exp": now - 10}, {"nbf": now + 10}, {"iat": now + 10}):
        metadata = bearer(signed(claims(soeid, **changed)))
        assert judge.send("ListJobs", b"", metadata=metadata).code == "OK"


def test_a_caller_whom_nobody_knows_is_told_its_name(judge: Judge) -> None:
    metadata = bearer(signed(claims("ZZ00000")))
    assert refused_as(judge, metadata, "CALLER_UNKNOWN") == {"user_soeid": "zz00000"}


def test_a_soeid_in_a_token_is_read_in_any_letter_case(judge: Judge, soeid: str) -> None:
    assert judge.send("ListJobs", b"", metadata=bearer(signed(claims(soeid.upper())))).code == "OK"


@pytest.fixture(scope="module")
def services(
    postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Judge]]:
    """A service for each kind of public key, all on one database, started at the same time."""
    url = postgres_18.new_database()
    processes: dict[str, ServiceProcess] = {}
    for algorithm, key in PRIVATE.items():
        folder = tmp_path_factory.mktemp(algorithm)
        (folder / "key.pem").write_bytes(b"\n" + public_pem(key))
        settings = {
            "JOBS_DATABASE_URL": url,
            "JOBS_JWT_KEY_FILE": str(folder / "key.pem"),
            "JOBS_DATA_DIR": str(folder / "data"),
        }
        processes[algorithm] = ServiceProcess(folder, settings | (STRICT if algorithm == "RS256" else {}))
    worlds: dict[str, World] = {}
    try:
        for algorithm, process in processes.items():
            worlds[algorithm] = World(url, process.started().target)
        yield {name: Judge(each, Client(each.channel(), None)) for name, each in worlds.items()}
    finally:
        for world in worlds.values():
            world.close()
        assert [process.stop() for process in processes.values()] == [0] * len(processes)


def asked(algorithm: str, soeid: str, **changed: Any) -> dict[str, Any]:
    """The claims that the service with this key asks for."""
    strict = {"iss": STRICT["JOBS_JWT_ISSUER"], "aud": STRICT["JOBS_JWT_AUDIENCE"]}
    return claims(soeid, **((strict if algorithm == "RS256" else {}) | changed))


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_lets_its_own_tokens_in_and_no_others(
    services: dict[str, Judge], algorithm: str
) -> None:
    judge = services[algorithm]
    content = asked(algorithm, judge.world.user().soeid)
    token = signed(content, PRIVATE[algorithm], algorithm)
    assert judge.send("ListJobs", b"", metadata=bearer(token)).code == "OK"
    others = {name: key for name, key in PRIVATE.items() if name != algorithm}
    for name, key in others.items():
        refused_as(judge, bearer(signed(content, key, name)), "CREDENTIALS_INVALID")
    refused_as(judge, bearer(signed(content)), "CREDENTIALS_INVALID")
    for header in (b'{"alg":"none"}', json.dumps({"alg": algorithm}).encode()):
        forged = assembled(header, json.dumps(content).encode())
        refused_as(judge, bearer(forged), "CREDENTIALS_INVALID")


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_the_public_key_as_a_secret_signs_nothing(services: dict[str, Judge], algorithm: str) -> None:
    judge = services[algorithm]
    content = asked(algorithm, judge.world.user().soeid)
    pem = public_pem(PRIVATE[algorithm])
    for secret in (pem, pem.strip(), b"\n" + pem):
        token = signed_by_hand(content, secret, "HS256", typ="JWT")
        refused_as(judge, bearer(token), "CREDENTIALS_INVALID")


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": None},
        {"iss": "https://other.example"},
        {"iss": "https://issuer.example/"},
        {"iss": ["https://issuer.example"]},
        {"iss": 5},
        {"aud": None},
        {"aud": "other"},
        {"aud": []},
        {"aud": ["other"]},
        {"aud": "JOBS"},
        {"aud": 5},
        {"exp": 0},
        {"exp": -1},
    ],
    ids=str,
)
def test_another_issuer_or_audience_is_refused(services: dict[str, Judge], changed: dict[str, Any]) -> None:
    judge = services["RS256"]
    content = asked("RS256", judge.world.user().soeid, **changed)
    refused_as(judge, bearer(signed(content, PRIVATE["RS256"], "RS256")), "CREDENTIALS_INVALID")


def test_an_audience_among_others_is_enough(services: dict[str, Judge]) -> None:
    judge = services["RS256"]
    content = asked("RS256", judge.world.user().soeid, aud=["other", "jobs"])
    token = signed(content, PRIVATE["RS256"], "RS256")
    assert judge.send("ListJobs", b"", metadata=bearer(token)).code == "OK"


@pytest.mark.parametrize("kind", ["a private key", "a short secret", "no file"])
def test_a_key_file_that_can_not_be_used_is_refused_at_start(tmp_path: Path, kind: str) -> None:
    private = PRIVATE["ES256"].private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "key"
    if kind != "no file":
        path.write_bytes(private if kind == "a private key" else b"short")
    settings = {
        "JOBS_LISTEN": "127.0.0.1:0",
        "JOBS_DATABASE_URL": "postgresql://127.0.0.1:1/nothing",
        "JOBS_JWT_KEY_FILE": str(path),
        "JOBS_DATA_DIR": str(tmp_path / "data"),
    }
    ended = run_command("serve", settings=settings)
    assert ended.returncode == 3
    assert ended.stderr.startswith(f"jobs-service: {path}")
    assert len(ended.stderr.splitlines()) == 1
    assert private.decode().splitlines()[1] not in ended.stderr
