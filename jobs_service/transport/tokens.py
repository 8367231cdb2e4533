"""Keys of bearer tokens: the files they come in, and the development key, which makes tokens too."""

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from jobs_service.transport.disguises import looks_like_a_key

DEVELOPMENT_KEY_FILE = "development-jwt-key"
TOKEN_SECONDS = 12 * 3600
_MIN_SECRET_BYTES = 32
_MIN_RSA_BITS = 2048
KINDS = f"RSA of {_MIN_RSA_BITS} bits or more, P-256, or Ed25519"


class UnusableKey(Exception):
    """A file of keys or certificates that can't be used; the message says why, never what is in it."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key and the one algorithm that it is used with, whatever a token's header says.

    kid: its name in a JWKS.
    """

    algorithm: str
    key: Any
    kid: str | None = None


def load_key(path: Path) -> TokenKey:
    """Read a key file: a PEM public key, or a secret. Raises UnusableKey."""
    return parse_key(path, read_file(path))


def read_file(path: Path) -> bytes:
    """Return what is in a file of keys. Raises UnusableKey."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableKey(f"{path} can't be read: {error.strerror}") from None


def parse_key(path: Path, content: bytes) -> TokenKey:
    """Make a key of what is in a key file; path is for the message. Raises UnusableKey."""
    if b"-----BEGIN" in content:
        return _public_key(path, content)
    if looks_like_a_key(content):
        raise UnusableKey(f"{path} is neither a PEM public key nor a secret")
    content = content.rstrip(b"\r\n")
    if len(content) < _MIN_SECRET_BYTES:
        raise UnusableKey(f"{path} holds a secret of less than {_MIN_SECRET_BYTES} bytes")
    return TokenKey("HS256", content)


def _public_key(path: Path, pem: bytes) -> TokenKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey(f"{path} is not a PEM public key (PUBLIC KEY)") from None
    algorithm = algorithm_of(key)
    if algorithm is None:
        raise UnusableKey(f"{path}: the key must be {KINDS}")
    return TokenKey(algorithm, key)


def algorithm_of(key: object) -> str | None:
    """Return the algorithm that a public key is used with; None for a kind or a size that is not taken."""
    match key:
        case RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return "RS256"
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return "ES256"
        case Ed25519PublicKey():
            return "EdDSA"
    return None


def development_key(folder: Path) -> TokenKey:
    """Return the key in the data folder, made if there is none: 32 random bytes as hex, mode 0600."""
    path = folder / DEVELOPMENT_KEY_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Linked into its place when complete: two that start at once agree on one key.
        draft = folder / f"{DEVELOPMENT_KEY_FILE}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    return parse_key(path, _read_own_file(path))


def _read_own_file(path: Path) -> bytes:
    """Return what is in a file that is ours, and that nobody else can read. Raises UnusableKey."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise UnusableKey(f"{path} must belong to who runs this, with mode 0600: others know the key")
            return file.read()
    except OSError as error:
        raise UnusableKey(f"{path} can't be read: {error.strerror}") from None


def make_token(key: TokenKey, soeid: str, *, issuer: str | None = None, audience: str | None = None) -> str:
    """Sign a token for a SOEID that is good for 12 hours. Raises UnusableKey for a public key."""
    if key.algorithm != "HS256":
        raise UnusableKey("a public key can't sign tokens: ask whoever issues them")
    now = int(time.time())
    claims: dict[str, Any] = {"sub": soeid, "iat": now, "exp": now + TOKEN_SECONDS}
    claims |= {name: value for name, value in (("iss", issuer), ("aud", audience)) if value}
    return jwt.encode(claims, key.key, algorithm=key.algorithm)
