"""JWKS files: which keys are taken, what makes a file unusable, and which key checks which token."""

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.jwks import parse_jwks
from jobs_service.transport.token_verifier import TokenVerifier
from jobs_service.transport.tokens import TokenKey, UnusableKey

PATH = Path("/keys/jwks.json")
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
SECRET = {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    """A key, public or private, as a JWK; None takes a member away."""
    algorithms = jwt.algorithms
    kind: Any = algorithms.OKPAlgorithm
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        kind = algorithms.RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        kind = algorithms.ECAlgorithm
    members = json.loads(kind.to_jwk(key)) | more
    members.pop("key_ops", None) if "key_ops" not in more else None
    return {name: value for name, value in members.items() if value is not None}


def public(algorithm: str, **more: Any) -> dict[str, Any]:
    return jwk(PRIVATE[algorithm].public_key(), **more)


def parsed(*members: Any) -> list[TokenKey]:
    return parse_jwks(PATH, json.dumps({"keys": list(members)}).encode())


def token(algorithm: str, kid: str | None = None, key: Any = None, **header: Any) -> str:
    headers = header | ({} if kid is None else {"kid": kid})
    claims = {"sub": "us10000", "exp": int(time.time()) + 60}
    return jwt.encode(claims, key or PRIVATE[algorithm], algorithm=algorithm, headers=headers)


def detail(verifier: TokenVerifier, sent: str) -> str:
    with pytest.raises(CredentialsInvalid) as refusal:
        verifier.soeid(sent)
    return refusal.value.detail


ALL = [public(algorithm, kid=algorithm, use="sig") for algorithm in PRIVATE]


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_the_kid_picks_the_key_and_the_key_the_algorithm(algorithm: str) -> None:
    keys = parsed(*ALL)
    assert [(key.kid, key.algorithm) for key in keys] == [(name, name) for name in PRIVATE]
    verifier = TokenVerifier(*keys)
    assert verifier.soeid(token(algorithm, algorithm)) == "us10000"
    for other in PRIVATE.keys() - {algorithm}:
        assert detail(verifier, token(algorithm, other)) == "the token's algorithm is not its key's"
    assert detail(verifier, token(algorithm, "unknown")) == "the token's kid is not known"
    assert detail(verifier, token(algorithm, "")) == "the token's kid is not known"


def test_a_key_is_used_with_no_algorithm_but_its_own() -> None:
    verifier = TokenVerifier(*parsed(*ALL))
    own = "the token's algorithm is not its key's"
    for algorithm in ("RS384", "RS512", "PS256"):
        assert detail(verifier, token(algorithm, "RS256", PRIVATE["RS256"])) == own
    assert detail(verifier, by_hand({"alg": "none"}, b"")).startswith("the token has no kid")
    for kid in PRIVATE:
        assert detail(verifier, by_hand({"alg": "none", "kid": kid}, b"")) == own
        assert detail(verifier, by_hand({"alg": "nOnE", "kid": kid}, b"")) == own


def by_hand(header: dict[str, Any], secret: bytes) -> str:
    """A token signed as HS256 with this secret, which the library would refuse to do with a public key."""
    claims = {"sub": "us10000", "exp": int(time.time()) + 60}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(secret, b".".join(parts), "sha256") if secret else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_no_form_of_a_public_key_is_a_secret_to_sign_with(algorithm: str) -> None:
    verifier = TokenVerifier(*parsed(*ALL))
    key = PRIVATE[algorithm].public_key()
    forms = [
        key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(public(algorithm)).encode(),
    ]
    for form in forms:
        for header in ({"kid": algorithm}, {}, {"kid": algorithm, "jwk": public(algorithm)}):
            assert detail(verifier, by_hand({"alg": "HS256"} | header, form))


def test_a_key_that_a_token_brings_along_is_not_used() -> None:
    verifier = TokenVerifier(*parsed(*ALL))
    for header in ({"jwk": jwk(OTHER_EC.public_key())}, {"jku": "https://example.org/jwks"}):
        sent = token("ES256", "ES256", OTHER_EC, **header)
        assert detail(verifier, sent) == "the token's signature is wrong"


def test_a_token_without_a_kid_needs_exactly_one_key_of_its_algorithm() -> None:
    one = TokenVerifier(*parsed(*ALL))
    assert one.soeid(token("ES256")) == "us10000"
    two = TokenVerifier(*parsed(*ALL, jwk(OTHER_EC.public_key(), kid="other")))
    assert detail(two, token("ES256")).startswith("the token has no kid")
    assert two.soeid(token("ES256", "ES256")) == two.soeid(token("ES256", "other", OTHER_EC)) == "us10000"
    assert two.soeid(token("EdDSA")) == "us10000"


def test_a_single_key_without_a_kid_checks_every_token() -> None:
    verifier = TokenVerifier(*parsed(public("ES256")))
    assert verifier.soeid(token("ES256", "any")) == verifier.soeid(token("ES256")) == "us10000"
    several = TokenVerifier(*parsed(public("ES256"), public("EdDSA")))
    assert detail(several, token("ES256", "any")) == "the token's kid is not known"
    assert several.soeid(token("ES256")) == "us10000"


@pytest.mark.parametrize("kid", [5, ["ES256"], {"a": 1}, True])
def test_a_kid_that_is_no_text_is_refused(kid: Any) -> None:
    sent = by_hand({"alg": "HS256", "kid": kid}, b"s" * 32)
    assert detail(TokenVerifier(*parsed(*ALL)), sent) == "the token is malformed"


def test_keys_that_change_are_the_ones_that_count_for_remembered_tokens_too() -> None:
    verifier = TokenVerifier(*parsed(*ALL))
    sent = token("ES256", "ES256")
    assert verifier.soeid(sent) == "us10000"
    verifier.use(*parsed(public("EdDSA", kid="EdDSA")))
    assert detail(verifier, sent) == "the token's kid is not known"
    verifier.use(*parsed(jwk(OTHER_EC.public_key(), kid="ES256")))
    assert detail(verifier, sent) == "the token's signature is wrong"


@pytest.mark.parametrize(
    "member",
    [
        public("ES256", use="enc"),
        public("ES256", key_ops=["encrypt"]),
        public("ES256", key_ops=[]),
        public("ES256", key_ops="verify"),
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kid": "nothing"},
    ],
)
def test_keys_for_something_else_are_left_out(member: dict[str, Any]) -> None:
    assert [key.kid for key in parsed(member, public("EdDSA", kid="k", key_ops=["verify"]))] == ["k"]
    with pytest.raises(UnusableKey, match="no key for signatures"):
        parsed(member)


UNUSABLE = [
    (b"", "no JWKS"),
    (b"\xff", "no JWKS"),
    (b"null", "no JWKS"),
    (b"[]", "no JWKS"),
    (b'{"key": []}', "no JWKS"),
    (b"[" * 100_000, "no JWKS"),
    (json.dumps(public("ES256")).encode(), "no JWKS"),
    (b'{"keys": {}}', "a list of objects"),
    (b'{"keys": [5]}', "a list of objects"),
    (b'{"keys": []}', "no key for signatures"),
]


@pytest.mark.parametrize(("content", "why"), UNUSABLE, ids=[repr(content[:20]) for content, _ in UNUSABLE])
def test_what_is_no_jwks_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(UnusableKey, match=why) as refusal:
        parse_jwks(PATH, content)
    assert str(PATH) in str(refusal.value)


BAD_MEMBERS: list[tuple[dict[str, Any], str]] = [
    *((jwk(PRIVATE[algorithm]), "is a private key") for algorithm in PRIVATE),
    (jwk(PRIVATE["RS256"], d=None), "is a private key"),
    (jwk(PRIVATE["ES256"], use="enc"), "is a private key"),
    (SECRET, "is a shared secret"),
    (SECRET | {"use": "enc"}, "is a shared secret"),
    (public("ES256") | {"k": "AAAA"}, "is a shared secret"),
    (public("RS256", alg="RS512"), 'its "alg" is another'),
    (public("RS256", alg="PS256"), 'its "alg" is another'),
    (public("RS256", alg="HS256"), 'its "alg" is another'),
    (public("ES256", alg="none"), 'its "alg" is another'),
    (public("ES256", alg="EdDSA"), 'its "alg" is another'),
    (public("ES256", alg=5), 'its "alg" is another'),
    (jwk(rsa.generate_private_key(65537, 1024).public_key()), "the key must be RSA of 2048"),
    (jwk(ec.generate_private_key(ec.SECP384R1()).public_key()), "the key must be"),
    (jwk(ec.generate_private_key(ec.SECP256K1()).public_key()), "the key must be"),
    (public("ES256", x=None), "not a public key that can be read"),
    (public("ES256", x=public("ES256")["y"]), "not a public key that can be read"),
    (public("ES256", x=5), "not a public key that can be read"),
    (public("ES256", crv="P-999"), "not a public key that can be read"),
    (public("RS256", n="AA"), "not a public key that can be read|the key must be"),
    (public("RS256", n="*"), "not a public key that can be read|the key must be"),
    (public("EdDSA", crv="Ed448"), "not a public key that can be read|the key must be"),
    (public("ES256", kid=5), "its kid must be a text"),
    (public("ES256", kid=""), "its kid must be a text"),
]


@pytest.mark.parametrize(("member", "why"), BAD_MEMBERS)
def test_one_bad_key_makes_the_file_unusable(member: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableKey, match=why) as refusal:
        parsed(public("EdDSA", kid="good"), member)
    message = str(refusal.value)
    assert message.startswith(f"{PATH}: keys[1]")
    hidden = [member.get(name) for name in ("d", "k", "p", "n", "x")]
    assert not any(isinstance(text, str) and len(text) > 3 and text in message for text in hidden)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(UnusableKey, match="the same kid"):
        parsed(public("ES256", kid="k"), public("EdDSA", kid="k"))
