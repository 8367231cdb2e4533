"""Bearer tokens: JWTs, checked with the key that their `kid` names, in that key's own algorithm."""

import time
from typing import Any

import jwt

from jobs_service.model.caller import normalized_soeid
from jobs_service.model.errors import CredentialsInvalid
from jobs_service.transport.tokens import TokenKey

MAX_REMEMBERED = 1_000

# What the log is told, the first that fits; never a text of the library's, which may hold what was sent.
_DETAILS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is by another issuer"),
    (jwt.InvalidAlgorithmError, "the token's algorithm is not its key's"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.MissingRequiredClaimError, "the token lacks a claim that is required"),
    (jwt.InvalidTokenError, "the token is malformed"),
)


class TokenVerifier:
    """Checks signature, expiry, issuer and audience of tokens.

    issuer: what `iss` must be; None: not checked. audience: what `aud` must hold; None: a token that
    was made for some audience is refused. leeway: seconds that clocks may differ by.
    """

    def __init__(
        self, *keys: TokenKey, issuer: str | None = None, audience: str | None = None, leeway: float = 30
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._verified: dict[str, tuple[str, float]] = {}

    def use(self, *keys: TokenKey) -> None:
        """Check with these keys from now on, tokens that were good before too."""
        self._keys = keys
        self._verified = {}

    def soeid(self, token: str) -> str:
        """Return the SOEID that a token speaks for, in lower case. Raises CredentialsInvalid."""
        known = self._verified.get(token)
        if known is None or known[1] < time.time():
            known = self._verify(token)
            # What the key says of a token never changes, so that only its end has to be looked at.
            if len(self._verified) >= MAX_REMEMBERED:
                self._verified.pop(next(iter(self._verified)))
            self._verified[token] = known
        return known[0]

    def _verify(self, token: str) -> tuple[str, float]:
        """The SOEID, and the moment until which the token is good."""
        try:
            key = self._key_for(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "sub"]},
            )
            until = float(claims["exp"]) + self._leeway
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise CredentialsInvalid(_detail(error)) from None
        soeid = normalized_soeid(str(claims["sub"]))
        if soeid is None:
            raise CredentialsInvalid("the token's sub is no SOEID")
        return soeid, until

    def _key_for(self, header: dict[str, Any]) -> TokenKey:
        """The key that a token with this header is checked with."""
        # A key file holds one key that has no name, whatever its issuer calls it in tokens.
        if len(self._keys) == 1 and self._keys[0].kid is None:
            return self._keys[0]
        kid = header.get("kid")
        if kid is not None:
            fitting = [key for key in self._keys if key.kid == kid]
        else:
            fitting = [key for key in self._keys if key.algorithm == header.get("alg")]
        if len(fitting) == 1:
            return fitting[0]
        if kid is not None:
            raise CredentialsInvalid("the token's kid is not known")
        raise CredentialsInvalid("the token has no kid, and not exactly one key has its algorithm")


def _detail(error: Exception) -> str:
    return next((text for kind, text in _DETAILS if isinstance(error, kind)), "the token is malformed")
