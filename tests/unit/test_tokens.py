"""Bearer tokens: the keys that are taken, the development key, and each algorithm."""

import base64
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from jobs_service.config import load
from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.credentials import load_credentials
from jobs_service.transport.token_verifier import TokenVerifier
from jobs_service.transport.tokens import (
    DEVELOPMENT_KEY_FILE,
    TOKEN_SECONDS,
    TokenKey,
    UnusableKey,
    development_key,
    load_key,
    make_token,
)

SECRET = b"a-secret-for-tests-of-more-than-32-bytes"
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
PLAIN = serialization.NoEncryption()


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


PRIVATE: dict[str, Any] = {
    "RS256": rsa_key(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(PEM, SPKI))


def key_file(folder: Path, content: bytes) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    return path


def claims(**changed: Any) -> dict[str, Any]:
    return {"sub": "us10000", "exp": int(time.time()) + 60} | changed


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_checks_tokens_of_its_own_algorithm(tmp_path: Path, algorithm: str) -> None:
    key = load_key(key_file(tmp_path, public_pem(PRIVATE[algorithm])))
    assert key.algorithm == algorithm
    token = jwt.encode(claims(sub="US10000"), PRIVATE[algorithm], algorithm=algorithm)
    assert TokenVerifier(key).soeid(token) == "us10000"


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_token_of_another_algorithm_is_refused(tmp_path: Path, algorithm: str) -> None:
    verifier = TokenVerifier(load_key(key_file(tmp_path, public_pem(PRIVATE[algorithm]))))
    others = [(name, key) for name, key in PRIVATE.items() if name != algorithm] + [("HS256", SECRET)]
    if algorithm == "RS256":
        others += [("RS512", PRIVATE[algorithm]), ("PS256", PRIVATE[algorithm])]
    for name, key in others:
        with pytest.raises(CredentialsInvalid):
            verifier.soeid(jwt.encode(claims(), key, algorithm=name))


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_signs_no_tokens(tmp_path: Path, algorithm: str) -> None:
    key = load_key(key_file(tmp_path, public_pem(PRIVATE[algorithm])))
    with pytest.raises(UnusableKey):
        make_token(key, "us10000")


def test_a_secret_signs_and_checks_tokens_of_twelve_hours(tmp_path: Path) -> None:
    key = load_key(key_file(tmp_path, SECRET + b"\n"))
    assert key == TokenKey("HS256", SECRET)
    token = make_token(key, "us10000", issuer="i", audience="a")
    assert TokenVerifier(key, issuer="i", audience="a").soeid(token) == "us10000"
    content = jwt.decode(token, SECRET, algorithms=["HS256"], audience="a")
    assert content["exp"] - content["iat"] == TOKEN_SECONDS == 12 * 3600


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "less than 32 bytes"),
        (b"x" * 31, "less than 32 bytes"),
        (b"x" * 31 + b"\n\n", "less than 32 bytes"),
        (PRIVATE["RS256"].private_bytes(PEM, PKCS8, PLAIN), "not a PEM public key"),
        (PRIVATE["ES256"].private_bytes(PEM, PKCS8, PLAIN), "not a PEM public key"),
        (PRIVATE["EdDSA"].private_bytes(PEM, PKCS8, PLAIN), "not a PEM public key"),
        (b"\n  " + PRIVATE["EdDSA"].private_bytes(PEM, PKCS8, PLAIN), "not a PEM public key"),
        (public_pem(PRIVATE["RS256"])[:-80], "not a PEM public key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a PEM public key"),
        (public_pem(rsa_key(1024)), "must be RSA"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "must be RSA"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "must be RSA"),
    ],
    ids=[
        "empty",
        "31 bytes",
        "31 bytes and lines",
        "private RSA",
        "private P-256",
        "private Ed25519",
        "private after spaces",
        "cut PEM",
        "certificate",
        "RSA of 1024 bits",
        "P-384",
        "secp256k1",
    ],
)
def test_a_key_that_is_weak_or_private_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = key_file(tmp_path, content)
    with pytest.raises(UnusableKey, match=why) as refusal:
        load_key(path)
    assert str(path) in str(refusal.value)
    assert not content or content.decode().strip() not in str(refusal.value)


def wrapped(text: bytes, width: int = 64) -> bytes:
    return b"\n".join(text[at : at + width] for at in range(0, len(text), width)) + b"\n"


def disguises(key: Any) -> dict[str, bytes]:
    """A public key in all the forms that tools write it in."""
    public, pem = key.public_key(), public_pem(key)
    der = public.public_bytes(serialization.Encoding.DER, SPKI)
    ssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    blob = base64.b64decode(ssh.split()[1])
    armour = b"---- BEGIN SSH2 PUBLIC KEY ----\n", b"---- END SSH2 PUBLIC KEY ----\n"
    plain, url = base64.b64encode(der), base64.urlsafe_b64encode(der)
    return {
        "after text": b"Public-Key: (2048 bit)\n" + pem,
        "after a mark": b"\xef\xbb\xbf" + pem,
        "after a comment": b"# our key\n" + pem,
        "PEM in UTF-16": pem.decode().encode("utf-16"),
        "PEM in base64": base64.b64encode(pem),
        "PEM in wrapped base64": wrapped(base64.b64encode(pem), 76),
        "for ssh": ssh,
        "of an authorized_keys with options": b'from="10.0.0.1" ' + ssh,
        "as the blob of ssh": blob,
        "as the blob of ssh in base64": ssh.split()[1],
        "as the blob of ssh in hex": blob.hex().encode(),
        "as RFC 4716": armour[0] + b'Comment: "ours"\n' + wrapped(ssh.split()[1], 70) + armour[1],
        "as DER": der,
        "as DER and a line": der + b"\r\n",
        "as DER, cut": der[:-3],
        "in base64": plain,
        "in base64 without its padding": plain.rstrip(b"="),
        "in base64 and a line": plain + b"\n",
        "in base64, cut": plain[:-9],
        "in wrapped base64": wrapped(plain),
        "in wrapped base64 of DOS": wrapped(plain).replace(b"\n", b"\r\n"),
        "in base64 with escaped lines": wrapped(plain).replace(b"\n", b"\\n"),
        "in base64 of base64": base64.b64encode(plain),
        "in base64 in UTF-16": plain.decode().encode("utf-16"),
        "in base64url": url,
        "in base64url without its padding": url.rstrip(b"="),
        "in wrapped base64url": wrapped(url),
        "as of DKIM": b"v=DKIM1; k=rsa; p=" + plain,
        "in hex": der.hex().encode(),
        "in hex, upper case": der.hex().upper().encode() + b"\n",
        "in hex with colons": der.hex(":").encode(),
        "in wrapped hex": wrapped(der.hex().encode(), 32),
        "in hex with 0x": b"0x" + der.hex().encode(),
    }


@pytest.mark.parametrize("algorithm", PRIVATE)
@pytest.mark.parametrize("form", disguises(PRIVATE["RS256"]))
def test_no_form_of_a_public_key_becomes_a_secret(tmp_path: Path, form: str, algorithm: str) -> None:
    # Everybody knows a public key, and could sign with it if it were taken for a secret.
    path = key_file(tmp_path, disguises(PRIVATE[algorithm])[form])
    try:
        key = load_key(path)
    except UnusableKey:
        return
    assert key.algorithm == algorithm


@pytest.mark.parametrize("kind", ["JWK", "PKCS 1", "PKCS 1 in base64"])
def test_no_form_of_an_rsa_key_alone_becomes_a_secret(tmp_path: Path, kind: str) -> None:
    public = PRIVATE["RS256"].public_key()
    pkcs1 = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    content = {
        "JWK": jwt.algorithms.RSAAlgorithm.to_jwk(public).encode(),
        "PKCS 1": pkcs1,
        "PKCS 1 in base64": base64.b64encode(pkcs1),
    }
    with pytest.raises(UnusableKey):
        load_key(key_file(tmp_path, content[kind]))


@pytest.mark.parametrize("end", [b"\n", b"\r"], ids=repr)
def test_a_der_that_ends_like_a_line_is_no_secret(tmp_path: Path, end: bytes) -> None:
    body = PRIVATE["RS256"].public_key().public_bytes(serialization.Encoding.DER, SPKI)[:-1] + end
    with pytest.raises(UnusableKey):
        load_key(key_file(tmp_path, body))
    # Nothing in it is known but the SEQUENCE, so that its length is what tells.
    with pytest.raises(UnusableKey):
        load_key(key_file(tmp_path, b"\x30\x3e" + b"x" * 61 + end))


def test_secrets_that_tools_make_are_taken(tmp_path: Path) -> None:
    # The digests stand for random bytes: a real one is refused once in 65,536 times.
    for number in range(50):
        secret = hashlib.sha512(str(number).encode()).digest()
        text = [secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret)]
        for content in (b"x" + secret + b"x", *text):
            assert load_key(key_file(tmp_path, content)) == TokenKey("HS256", content)


def test_a_reload_makes_no_secret_of_a_public_key(tmp_path: Path) -> None:
    path = key_file(tmp_path, public_pem(PRIVATE["ES256"]))
    credentials = load_credentials(load({"JOBS_JWT_KEY_FILE": str(path)}))
    (group,) = credentials.files
    token = jwt.encode(claims(), PRIVATE["ES256"], algorithm="ES256")
    with pytest.raises(UnusableKey, match="needs a restart"):
        group.take([SECRET])
    assert credentials.verifier.soeid(token) == "us10000"
    group.take([public_pem(PRIVATE["EdDSA"])])
    with pytest.raises(UnusableKey, match="needs a restart"):
        group.take([SECRET])


def test_a_reload_takes_another_secret_and_a_public_key_for_one(tmp_path: Path) -> None:
    path = key_file(tmp_path, SECRET)
    credentials = load_credentials(load({"JOBS_JWT_KEY_FILE": str(path)}))
    (group,) = credentials.files
    for content in (SECRET[::-1], public_pem(PRIVATE["ES256"])):
        group.take([content])
    token = jwt.encode(claims(), PRIVATE["ES256"], algorithm="ES256")
    assert credentials.verifier.soeid(token) == "us10000"


def test_a_key_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableKey, match="can't be read"):
        load_key(tmp_path / "nothing")
    with pytest.raises(UnusableKey, match="can't be read"):
        load_key(tmp_path)


def test_the_development_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    before = os.umask(0)
    try:
        key = development_key(folder)
    finally:
        os.umask(before)
    path = folder / DEVELOPMENT_KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.algorithm == "HS256"
    assert len(bytes.fromhex(key.key.decode())) == 32
    assert development_key(folder) == key
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o604])
def test_a_development_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    development_key(tmp_path)
    (tmp_path / DEVELOPMENT_KEY_FILE).chmod(mode)
    with pytest.raises(UnusableKey, match="mode 0600"):
        development_key(tmp_path)


def test_a_development_key_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    development_key(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UnusableKey, match="belong"):
        development_key(tmp_path)


def test_a_development_key_behind_a_link_is_refused(tmp_path: Path) -> None:
    development_key(tmp_path / "elsewhere")
    (tmp_path / DEVELOPMENT_KEY_FILE).symlink_to(tmp_path / "elsewhere" / DEVELOPMENT_KEY_FILE)
    with pytest.raises(UnusableKey, match="can't be read"):
        development_key(tmp_path)


def test_development_keys_differ(tmp_path: Path) -> None:
    assert development_key(tmp_path / "a") != development_key(tmp_path / "b")


def test_processes_that_start_at_once_agree_on_one_development_key(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from jobs_service.transport.tokens import development_key;"
        "sys.stdin.read(); print(development_key(Path(sys.argv[1])).key.decode())"
    )
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        keys = {process.communicate(timeout=60)[0].strip() for process in started}
        assert keys == {(folder / DEVELOPMENT_KEY_FILE).read_text()}
        assert [path.name for path in folder.iterdir()] == [DEVELOPMENT_KEY_FILE]
