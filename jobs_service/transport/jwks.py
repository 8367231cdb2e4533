"""JWKS files: a set of public keys with names, so that an issuer can change keys without a gap."""

import json
from pathlib import Path
from typing import Any

import jwt

from jobs_service.transport.tokens import KINDS, TokenKey, UnusableKey, algorithm_of

_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_KINDS_OF_KEYS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


def parse_jwks(path: Path, content: bytes) -> list[TokenKey]:
    """Make keys of what is in a JWKS file, those for signatures; path is for the message.

    Keys for something else, and of a `kty` that is not known, are left out, as RFC 7517 asks. Anything
    else that can't be used makes the whole file unusable: an issuer's mistake should be seen when it is
    made, not when the first token comes. Raises UnusableKey.
    """
    try:
        parsed = json.loads(content)
        members = parsed["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UnusableKey(f'{path} is no JWKS: a JSON object with a list "keys"') from None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise UnusableKey(f'{path}: "keys" must be a list of objects')
    for index, member in enumerate(members):
        _refuse_secrets(f"{path}: keys[{index}]", member)
    keys = [
        _token_key(f"{path}: keys[{index}]", member)
        for index, member in enumerate(members)
        if _is_for_signatures(member)
    ]
    names = [key.kid for key in keys if key.kid is not None]
    if len(set(names)) < len(names):
        raise UnusableKey(f"{path}: two keys have the same kid")
    if not keys:
        raise UnusableKey(f"{path} holds no key for signatures")
    return keys


def _refuse_secrets(where: str, member: dict[str, Any]) -> None:
    if member.get("kty") == "oct" or "k" in member:
        raise UnusableKey(f"{where} is a shared secret: whoever reads the file could sign")
    if not _PRIVATE.isdisjoint(member):
        raise UnusableKey(f"{where} is a private key: leave its public part alone here, and replace the key")


def _is_for_signatures(member: dict[str, Any]) -> bool:
    if member.get("kty") not in _KINDS_OF_KEYS:
        return False
    operations = member.get("key_ops", ["verify"])
    return member.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _token_key(where: str, member: dict[str, Any]) -> TokenKey:
    wanted = ("kty", *_KINDS_OF_KEYS[member["kty"]])
    try:
        public = jwt.PyJWK({name: member[name] for name in wanted}).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        raise UnusableKey(f"{where} is not a public key that can be read") from None
    algorithm = algorithm_of(public)
    if algorithm is None:
        raise UnusableKey(f"{where}: the key must be {KINDS}")
    if member.get("alg", algorithm) != algorithm:
        raise UnusableKey(f'{where}: a key of this kind is used with {algorithm}, its "alg" is another')
    kid = member.get("kid")
    if kid is not None and (not isinstance(kid, str) or not kid):
        raise UnusableKey(f"{where}: its kid must be a text")
    return TokenKey(algorithm, public, kid)
