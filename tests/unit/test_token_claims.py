"""Bearer tokens: the claims that are taken, and for how long."""

import json
import time
from typing import Any

import jwt
import pytest

from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.token_verifier import TokenVerifier
from jobs_service.transport.tokens import (
    TokenKey,
)
from tests.support.service import wait_until
from tests.unit.test_tokens import claims

SECRET = b"a-secret-for-tests-of-more-than-32-bytes"
KEY = TokenKey("HS256", SECRET)
NOW = int(time.time())


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": NOW - 1000},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": [NOW + 60]},
        {"exp": {}},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": NOW + 1000},
        {"nbf": "x"},
        {"nbf": float("inf")},
        {"iat": NOW + 1000},
        {"iat": {}},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": ["us10000"]},
        {"sub": "us1000"},
        {"sub": "us10000 "},
        {"sub": "us1000\u0660"},
        {"sub": "\u212aa10000"},
        {"sub": "us10000\n"},
        {"sub": "us10000\0"},
        {"aud": "somebody else"},
        {"aud": ["somebody", "else"]},
    ],
    # Numbered, by pytest: the time in a name would make other tests of them in each process.
)
def test_claims_that_are_wrong_are_refused(wrong: dict[str, Any]) -> None:
    payload = {name: value for name, value in claims(**wrong).items() if value is not None}
    # Signed as bytes: the encoder of the library would refuse to make some of these.
    token = jwt.api_jws.encode(json_bytes(payload), SECRET, algorithm="HS256")
    with pytest.raises(CredentialsInvalid):
        TokenVerifier(KEY).soeid(token)


def json_bytes(payload: Any) -> bytes:
    return json.dumps(payload).encode()


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"5", b'"us10000"', b"{", b"\xff", b"[" * 5000, b'{"a":' * 5000, b"1" * 5000],
    ids=lambda payload: repr(payload[:12]),
)
def test_a_signed_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    token = jwt.api_jws.encode(payload, SECRET, algorithm="HS256")
    with pytest.raises(CredentialsInvalid):
        TokenVerifier(KEY).soeid(token)


@pytest.mark.parametrize(("issuer", "audience"), [("i", None), (None, "a"), ("i", "a")])
def test_issuer_and_audience_are_required_where_they_are_set(
    issuer: str | None, audience: str | None
) -> None:
    verifier = TokenVerifier(KEY, issuer=issuer, audience=audience)
    right = {"iss": issuer, "aud": audience}
    asked: dict[str, Any] = {name: value for name, value in right.items() if value}
    assert verifier.soeid(jwt.encode(claims(**asked), SECRET)) == "us10000"
    for name in asked:
        wrongs: list[Any] = ["other", "", [], None, "i ", "A"]
        for wrong in wrongs:
            changed = {key: value for key, value in asked.items() if key != name}
            changed |= {} if wrong is None else {name: wrong}
            token = jwt.api_jws.encode(json_bytes(claims(**changed)), SECRET, algorithm="HS256")
            with pytest.raises(CredentialsInvalid):
                verifier.soeid(token)


def test_the_leeway_is_given_to_both_ends() -> None:
    verifier = TokenVerifier(KEY, leeway=100)
    now = int(time.time())
    assert verifier.soeid(jwt.encode(claims(exp=now - 50, nbf=now + 50, iat=now + 50), SECRET)) == "us10000"
    for late in ({"exp": now - 150}, {"nbf": now + 150}, {"iat": now + 150}):
        with pytest.raises(CredentialsInvalid):
            verifier.soeid(jwt.encode(claims(**late), SECRET))


def test_a_token_that_was_good_before_still_ends() -> None:
    key = TokenKey("HS256", b"x" * 32)
    verifier = TokenVerifier(key, leeway=0)
    token = jwt.encode({"sub": "al00001", "exp": time.time() + 1.0}, key.key, algorithm="HS256")
    assert verifier.soeid(token) == "al00001"

    def is_refused() -> bool:
        try:
            verifier.soeid(token)
        except CredentialsInvalid:
            return True
        return False

    wait_until(is_refused, 10, "the token's end")
