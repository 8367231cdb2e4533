"""X.509 certificates: the service's own with its key, the CAs of callers, and whom a caller's names."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from jobs_service.model.caller import normalized_soeid
from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.tokens import UnusableKey

SCHEME = "soeid:"
MAX_REMEMBERED = 1_000
_MIN_RSA_BITS = 2048
_CERTIFICATES = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_BLOCKS = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
# A block without its end, or a last line that ends within its armour.
_CUT = re.compile(rb"-----BEGIN|^[ \t]*-[^\n]*\Z", re.MULTILINE)

# What the library raises for the certificates that it knows of, but doesn't read.
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The service's certificate, with what it was issued by, and its key, as PEM."""

    chain: bytes
    key: bytes
    leaf: x509.Certificate

    @property
    def subject(self) -> str:
        """Whose it is, as RFC 4514 writes it."""
        return self.leaf.subject.rfc4514_string()

    @property
    def ends(self) -> str:
        """The moment from which it is good no more."""
        return self.leaf.not_valid_after_utc.isoformat()

    @property
    def expiry(self) -> float:
        """The same in seconds since 1970."""
        return self.leaf.not_valid_after_utc.timestamp()

    def describe(self) -> dict[str, object]:
        """Return what the log is told."""
        return {"subject": self.subject, "serial": f"{self.leaf.serial_number:x}", "not_after": self.ends}

    @property
    def problem(self) -> str | None:
        """Why clients will refuse it at this moment; None: they need not."""
        now = datetime.now(UTC)
        if now > self.leaf.not_valid_after_utc:
            return "the service's certificate has expired"
        if now < self.leaf.not_valid_before_utc:
            return "the service's certificate is not valid yet"
        return None


def server_certificate(paths: Sequence[Path], contents: Sequence[bytes]) -> ServerCertificate:
    """Make one of a certificate file and a key file. Raises UnusableKey, where they don't fit too."""
    (cert_path, key_path), (chain, pem) = paths, contents
    leaf = parse_certificates(cert_path, chain)[0]
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKey(f"{key_path} is not a PEM private key without a passphrase") from None
    match key:
        case RSAPrivateKey() if key.key_size >= _MIN_RSA_BITS:
            pass
        case EllipticCurvePrivateKey() if isinstance(key.curve, SECP256R1 | SECP384R1):
            pass
        case _:
            # gRPC agrees on no signature algorithm with any client for the others.
            raise UnusableKey(
                f"{key_path}: the key must be RSA of {_MIN_RSA_BITS} bits or more, P-256 or P-384"
            )
    if leaf.public_key() != key.public_key():
        raise UnusableKey(f"{key_path} is not the key of the first certificate in {cert_path}")
    return ServerCertificate(chain, pem, leaf)


def parse_certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one; path is for the message. Raises UnusableKey."""
    try:
        found = x509.load_pem_x509_certificates(content)
        for certificate in found:
            certificate.public_key()
    except _UNREADABLE:
        raise UnusableKey(f"{path} holds no PEM certificates that can be read") from None
    # The parser leaves out the last block where it is not complete: the file is being written.
    if len(_CERTIFICATES.findall(content)) != len(found) or _CUT.search(_BLOCKS.sub(b"", content)):
        raise UnusableKey(f"{path} holds certificates that can't be read: is it written to its end?")
    return found


@dataclass(frozen=True, slots=True)
class _Read:
    """What a caller's certificate says: a SOEID, or why there is none; its period in seconds since 1970."""

    soeid: str | None
    detail: str
    begins: float
    ends: float


class ClientCertificates:
    """Reads SOEIDs out of certificates that a handshake has verified; each is parsed once.

    A handshake is long ago on a connection that lives: period and issuer are looked at with every call.
    """

    def __init__(self) -> None:
        self._trusted: list[x509.Certificate] = []
        self._removed: list[x509.Certificate] = []
        self._read: dict[bytes, _Read] = {}

    def trust(self, authorities: Sequence[x509.Certificate]) -> None:
        """Take these CAs from now on: what only one that was removed has issued is refused."""
        gone = [one for one in (*self._removed, *self._trusted) if one not in authorities]
        self._trusted, self._removed, self._read = list(authorities), gone, {}

    def soeid(self, pem: bytes) -> str:
        """Return the SOEID that a certificate speaks for, in lower case. Raises CredentialsInvalid."""
        read = self._read.get(pem)
        if read is None:
            read = self._parse(pem)
            if len(self._read) >= MAX_REMEMBERED:
                self._read.pop(next(iter(self._read)))
            self._read[pem] = read
        if read.soeid is None:
            raise CredentialsInvalid(read.detail)
        now = time.time()
        if now > read.ends:
            raise CredentialsInvalid("the certificate has expired")
        if now < read.begins:
            raise CredentialsInvalid("the certificate is not valid yet")
        return read.soeid

    def _parse(self, pem: bytes) -> _Read:
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            names = _soeid_uris(certificate)
            begins = certificate.not_valid_before_utc.timestamp()
            ends = certificate.not_valid_after_utc.timestamp()
        except _UNREADABLE:
            return _Read(None, "the certificate can't be read", 0, 0)
        soeid = normalized_soeid(names[0]) if len(names) == 1 else None
        detail = ""
        if not names:
            detail = "no SOEID in the certificate"
        elif len(names) > 1:
            detail = "several SOEIDs in the certificate"
        elif soeid is None:
            detail = "what the certificate names is no SOEID"
        elif _issued_by(certificate, self._removed) and not _issued_by(certificate, self._trusted):
            soeid, detail = None, "the certificate's CA is no longer trusted"
        return _Read(soeid, detail, begins, ends)


def _soeid_uris(certificate: x509.Certificate) -> list[str]:
    """What stands after soeid: in the URIs of a certificate; other kinds of names don't count."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [uri[len(SCHEME) :] for uri in uris if uri.lower().startswith(SCHEME)]


def _issued_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Whether one of these has issued the certificate itself, with no CA in between."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return True
    return False
