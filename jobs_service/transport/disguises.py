"""Public keys in other forms than PEM.

Taken for an HS256 secret one would let everybody sign who knows it, and public keys are known.
"""

import base64
import binascii
import re
from collections.abc import Iterator

_STARTS = (b"----", b"{", b"[", b"PuTTY-")
_MARKS = (
    b"-----BEGIN",
    b"RSAKeyValue",
    b"ssh-rsa",
    b"ssh-dss",
    b"ssh-ed25519",
    b"ecdsa-sha2-",
    b"sk-ssh-",
    bytes.fromhex("2a864886f70d0101"),  # RSA, as DER names the algorithm
    bytes.fromhex("06072a8648ce3d0201"),  # elliptic curves
    bytes.fromhex("06032b6570"),  # Ed25519
)
_BREAKS = re.compile(rb"\\[rn]|[\s:]")
_HEX = re.compile(rb"(?:0x)?((?:[0-9a-fA-F]{2}){32,})")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{32,}")
_BLANKS = b" \t\r\n\0"


def looks_like_a_key(content: bytes) -> bool:
    """Whether this is a key, a PEM or a JWK, or holds one as hex or base64, also twice over.

    About 2**-16 of all random secrets are taken for one. A bare Ed25519 key or modulus looks like a secret.
    """
    # Without the zeros of UTF-16 and the marks before any UTF.
    text = content.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if _is_a_key(content) or _is_a_key(text):
        return True
    return any(
        _is_a_key(once) or any(_is_a_key(twice) for twice in _decoded(once)) for once in _decoded(text)
    )


def _is_a_key(content: bytes) -> bool:
    # Only a text: of random bytes, one in a hundred begins like that.
    is_text = content.startswith(_STARTS) and content.isascii()
    return is_text or any(mark in content for mark in _MARKS) or _is_der(content)


def _is_der(content: bytes) -> bool:
    """Whether this is one SEQUENCE that holds all the rest, but for blanks behind it."""
    length = _der_length(content)
    return content[:1] == b"\x30" and 2 < length <= len(content) and not content[length:].strip(_BLANKS)


def _der_length(content: bytes) -> int:
    """The length that the header of a DER value claims for all of it; 0 where there is no header."""
    if len(content) < 2:
        return 0
    if content[1] < 0x80:
        return 2 + content[1]
    size = content[1] & 0x7F
    return 2 + size + int.from_bytes(content[2 : 2 + size], "big")


def _decoded(text: bytes) -> Iterator[bytes]:
    """Everything in a text that can be read as hex or base64, lines joined and not."""
    for candidate in (text, _BREAKS.sub(b"", text)):
        for digits in _HEX.findall(candidate):
            yield bytes.fromhex(digits.decode())
        for run in _BASE64.findall(candidate):
            try:
                yield base64.b64decode(run.translate(bytes.maketrans(b"-_", b"+/")) + b"===")
            except binascii.Error:
                continue
