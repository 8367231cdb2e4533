"""Certificates for tests: authorities, and what they issue."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SERVER_NAMES = (x509.DNSName("jobs.example.org"), x509.IPAddress(LOOPBACK))
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


def uri(text: str) -> x509.GeneralName:
    """A URI as a subject alternative name."""
    return x509.UniformResourceIdentifier(text)


def private_pem(key: Any) -> bytes:
    """A private key as PEM, without a passphrase."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key. chain: the CAs between it and the one that is trusted, as PEM."""

    certificate: x509.Certificate
    private_key: Any
    chain: bytes = b""

    @property
    def pem(self) -> bytes:
        """The certificate and its chain."""
        return self.certificate.public_bytes(Encoding.PEM) + self.chain

    @property
    def key(self) -> bytes:
        """The key."""
        return private_pem(self.private_key)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both into files; returns their paths."""
        cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        cert_file.write_bytes(self.pem)
        key_file.write_bytes(self.key)
        return cert_file, key_file


def issue(
    subject: str,
    names: Sequence[x509.GeneralName] = (),
    *,
    by: "Issued | None" = None,
    seconds: tuple[float, float] = (-3600, 3600),
    ca: bool = False,
    usage: x509.ObjectIdentifier | None = None,
    key: Any = None,
) -> Issued:
    """Issue a certificate with this common name. by: None signs it itself. seconds: its period, from now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.certificate.subject if by else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(seconds=seconds[0]))
        .not_valid_after(now + timedelta(seconds=seconds[1]))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    signer = by.private_key if by else key
    hashing = hashes.SHA256() if isinstance(signer, ec.EllipticCurvePrivateKey) else _hash_of(signer)
    chain = by.pem if by is not None and by.certificate.issuer != by.certificate.subject else b""
    return Issued(builder.sign(signer, hashing), key, chain)


def _hash_of(key: Any) -> Any:
    """Ed25519 has one of its own."""
    return hashes.SHA256() if hasattr(key, "key_size") else None


def authority(subject: str, *, by: Issued | None = None) -> Issued:
    """A CA."""
    return issue(subject, by=by, ca=True)
