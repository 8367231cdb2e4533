"""Certificates: which are served with which key, whom a caller's names, and the probe's name."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.certificates import ClientCertificates, parse_certificates, server_certificate
from jobs_service.transport.probe import own_name
from jobs_service.transport.tokens import UnusableKey
from tests.support.certificates import LOOPBACK, Issued, authority, issue, uri

PATHS = (Path("/tls/tls.crt"), Path("/tls/tls.key"))
CA = authority("CA")
GOOD = issue("jobs", by=CA)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "RSA"],
)
def test_a_certificate_and_its_key_are_served(key: Any) -> None:
    issued = issue("jobs", by=CA, key=key)
    found = server_certificate(PATHS, (issued.pem + CA.pem, issued.key))
    assert (found.leaf, found.problem) == (issued.certificate, None)
    assert found.describe()["serial"] == f"{issued.certificate.serial_number:x}"


def encrypted(issued: Issued) -> bytes:
    key: bytes = issued.private_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    return key


def of_kind(key: Any) -> tuple[bytes, bytes]:
    issued = issue("jobs", key=key)
    return issued.pem, issued.key


UNUSABLE = {
    "no certificate": (b"", GOOD.key, "tls.crt holds no PEM certificates"),
    "a cut certificate": (GOOD.pem[:-40], GOOD.key, "tls.crt holds no PEM certificates"),
    "a key for a certificate": (GOOD.key, GOOD.key, "tls.crt holds no PEM certificates"),
    "no key": (GOOD.pem, b"", "tls.key is not a PEM private key"),
    "a cut key": (GOOD.pem, GOOD.key[:-40], "tls.key is not a PEM private key"),
    "a certificate for a key": (GOOD.pem, GOOD.pem, "tls.key is not a PEM private key"),
    "a passphrase": (GOOD.pem, encrypted(GOOD), "without a passphrase"),
    "another key": (GOOD.pem, CA.key, "tls.key is not the key of the first certificate in /tls/tls.crt"),
    "the wrong order": (CA.pem + GOOD.pem, GOOD.key, "is not the key of the first certificate"),
    "RSA of 1024": (*of_kind(rsa.generate_private_key(65537, 1024)), "must be RSA of 2048"),
    "Ed25519": (*of_kind(ed25519.Ed25519PrivateKey.generate()), "the key must be"),
    "P-521": (*of_kind(ec.generate_private_key(ec.SECP521R1())), "the key must be"),
    "secp256k1": (*of_kind(ec.generate_private_key(ec.SECP256K1())), "the key must be"),
}


@pytest.mark.parametrize(("chain", "key", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_gRPC_could_not_serve_is_refused(chain: bytes, key: bytes, why: str) -> None:  # noqa: N802
    with pytest.raises(UnusableKey, match=why) as refusal:
        server_certificate(PATHS, (chain, key))
    secrets = key.decode().splitlines()[1:-1]
    assert not any(line in str(refusal.value) for line in secrets)


@pytest.mark.parametrize(
    ("seconds", "problem"),
    [((-10, 3600), None), ((-3600, -10), "has expired"), ((3600, 7200), "is not valid yet")],
)
def test_a_certificate_out_of_its_period_has_a_problem(
    seconds: tuple[float, float], problem: str | None
) -> None:
    issued = issue("jobs", seconds=seconds)
    found = server_certificate(PATHS, (issued.pem, issued.key)).problem
    assert found is None if problem is None else found is not None and problem in found


def reader(*authorities: Issued) -> ClientCertificates:
    certificates = ClientCertificates()
    certificates.trust([one.certificate for one in authorities])
    return certificates


def detail(certificates: ClientCertificates, issued: Issued) -> str:
    with pytest.raises(CredentialsInvalid) as refusal:
        certificates.soeid(issued.pem)
    return refusal.value.detail


def test_what_is_no_certificate_is_refused() -> None:
    for sent in (b"", b"\xff", CA.key, GOOD.pem[:-40]):
        with pytest.raises(CredentialsInvalid) as refusal:
            reader(CA).soeid(sent)
        assert refusal.value.detail == "the certificate can't be read"


def with_other(found: bytes, put: bytes) -> bytes:
    """The PEM of a caller's certificate, in whose DER these bytes of the same length are replaced."""
    issued = issue("a caller", [uri("soeid:sv00001")], by=CA)
    der = issued.certificate.public_bytes(Encoding.DER)
    assert (der.count(found), len(found)) == (1, len(put))
    changed = base64.encodebytes(der.replace(found, put))
    return b"-----BEGIN CERTIFICATE-----\n" + changed + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (b"\x86\x0dsoeid", b"\xa5\x0dsoeid"),
        (b"\x86\x0dsoeid", b"\xa3\x0dsoeid"),
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"),
    ],
    ids=["ediPartyName", "x400Address", "version 6"],
)
def test_what_the_library_does_not_read_is_refused(found: bytes, put: bytes) -> None:
    with pytest.raises(CredentialsInvalid) as refusal:
        reader(CA).soeid(with_other(found, put))
    assert refusal.value.detail == "the certificate can't be read"


def test_a_period_is_looked_at_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    certificates, now = reader(CA), time.time()
    issued = issue("a caller", [uri("soeid:sv00001")], by=CA, seconds=(-100, 100))
    for later, told in ((0, None), (200, "expired"), (-200, "not valid yet"), (0, None)):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        if told is None:
            assert certificates.soeid(issued.pem) == "sv00001"
        else:
            assert told in detail(certificates, issued)


def test_what_a_removed_ca_has_issued_is_refused_until_it_is_back() -> None:
    other, renewed = authority("other"), issue("CA", ca=True, key=CA.private_key)
    between = authority("between", by=CA)
    issued = issue("a caller", [uri("soeid:sv00001")], by=CA)
    indirect = issue("a caller", [uri("soeid:sv00001")], by=between)
    certificates = reader(CA)
    assert certificates.soeid(issued.pem) == "sv00001"
    certificates.trust([other.certificate])
    assert detail(certificates, issued) == "the certificate's CA is no longer trusted"
    # Its chain is known to the handshake alone.
    assert certificates.soeid(indirect.pem) == "sv00001"
    certificates.trust([other.certificate, renewed.certificate])
    assert certificates.soeid(issued.pem) == "sv00001"
    certificates.trust([other.certificate])
    assert detail(certificates, issued) == "the certificate's CA is no longer trusted"
    certificates.trust([CA.certificate])
    assert certificates.soeid(issued.pem) == "sv00001"


def test_a_file_of_cas_holds_at_least_one() -> None:
    path = Path("/tls/ca.crt")
    assert len(parse_certificates(path, b"# ours\n" + CA.pem + GOOD.pem)) == 2
    for content in (b"", b"# none\n", CA.key, CA.pem[:-40]):
        with pytest.raises(UnusableKey, match=r"/tls/ca.crt holds no PEM certificates"):
            parse_certificates(path, content)


@pytest.mark.parametrize("length", [1, 10, 27, 28, 200, -30, -24, -5, -3])
def test_a_file_that_is_not_written_to_its_end_is_refused(length: int) -> None:
    half = authority("other").pem[:length]
    with pytest.raises(UnusableKey, match="to its end"):
        parse_certificates(Path("/tls/ca.crt"), CA.pem + half)
    with pytest.raises(UnusableKey, match="to its end"):
        server_certificate(PATHS, (GOOD.pem + half, GOOD.key))


def test_a_certificate_that_the_parser_leaves_out_is_refused() -> None:
    trusted = GOOD.pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
    with pytest.raises(UnusableKey, match="can't be read"):
        parse_certificates(Path("/tls/ca.crt"), CA.pem + trusted)


@pytest.mark.parametrize(
    "content",
    [
        CA.pem.rstrip() + b"\n" + GOOD.pem.rstrip(),
        (CA.pem + GOOD.pem).replace(b"\n", b"\r\n"),
        b"---\nCertificate chain\n" + CA.pem + b"---\n" + GOOD.pem + b"---\n",
        CA.pem + GOOD.key + GOOD.pem,
        CA.pem + GOOD.pem.replace(b"CERTIFICATE", b"X509 CERTIFICATE"),
    ],
    ids=["no line at the end", "lines of DOS", "text of openssl", "a key too", "the old name"],
)
def test_a_file_of_two_certificates_that_is_complete_is_taken(content: bytes) -> None:
    assert len(parse_certificates(Path("/tls/ca.crt"), content)) == 2


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ([x509.DNSName("jobs.example.org"), x509.DNSName("other")], "jobs.example.org"),
        ([x509.DNSName("*.example.org")], "health.example.org"),
        ([x509.IPAddress(LOOPBACK)], "127.0.0.1"),
        ([x509.IPAddress(LOOPBACK), x509.DNSName("jobs")], "jobs"),
        ([uri("spiffe://example.org/jobs")], "common"),
        ([], "common"),
    ],
)
def test_the_probe_asks_under_a_name_of_the_certificate(names: list[x509.GeneralName], name: str) -> None:
    assert own_name(issue("common", names).certificate) == name
