"""Who calls: from the metadata of a call to a Caller with ids."""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from jobs_service.model.caller import Caller, OnBehalf, normalized_soeid
from jobs_service.model.errors import (
    CallerUnknown,
    CredentialsInvalid,
    CredentialsMissing,
    InvalidRequest,
    Violation,
)
from jobs_service.transport.call import Call
from jobs_service.transport.certificates import ClientCertificates
from jobs_service.transport.token_verifier import TokenVerifier

AUTHORIZATION = "authorization"
ON_BEHALF_OF = "x-on-behalf-of"
# There only if the handshake has verified it, and only the mTLS listener asks for one.
_CERTIFICATE = "x509_pem_cert"
MAX_REMEMBERED = 10_000

Metadata = Iterable[tuple[str, str | bytes]]
FindUserId = Callable[[str, Call], Awaitable[int | None]]
# What gRPC knows of a connection's other end: properties of TLS by their names.
Peer = Callable[[], Mapping[str, Iterable[bytes]]]


class Authenticator:
    """Checks tokens and certificates, and looks SOEIDs up.

    certificates: None where no listener asks for any. find_user_id: SOEID in lower case to id, None for
    nobody. Only that mapping is remembered; that the user still exists, and what it may do, is read anew by
    every operation.
    """

    def __init__(
        self, verifier: TokenVerifier, certificates: ClientCertificates | None, find_user_id: FindUserId
    ) -> None:
        self._verifier = verifier
        self._certificates = certificates
        self._find_user_id = find_user_id
        self._remembered: dict[str, int] = {}

    async def caller(self, metadata: Metadata, peer: Peer, call: Call) -> Caller:
        """Return who sends this metadata: whom the token names, or without one the connection's certificate.

        Raises CredentialsMissing, CredentialsInvalid, CallerUnknown, and InvalidRequest for an
        on-behalf header that is no SOEID.
        """
        headers = [(key, value) for key, value in metadata if key in (AUTHORIZATION, ON_BEHALF_OF)]
        soeid = self._soeid(headers, peer)
        user_id = await self.user_id(soeid, call)
        if user_id is None:
            raise CallerUnknown(user_soeid=soeid)
        subject = _on_behalf_of(headers)
        if subject is None or subject == soeid:
            return Caller(soeid, user_id)
        return Caller(soeid, user_id, OnBehalf(subject, await self.user_id(subject, call)))

    def _soeid(self, headers: Metadata, peer: Peer) -> str:
        # A token that was sent decides, a bad one too: the certificate may be a proxy's that many share.
        if self._certificates is not None and all(key != AUTHORIZATION for key, _ in headers):
            for pem in peer().get(_CERTIFICATE, ()):
                return self._certificates.soeid(pem)
        return self._verifier.soeid(_bearer_token(headers))

    async def looked_up_anew(self, soeid: str, call: Call) -> bool:
        """Look up a SOEID that was remembered, for what was refused; whether somebody has it."""
        # Until there is an answer the others go on with what is remembered, and come here as well.
        if soeid not in self._remembered:
            return False
        found = await self._find_user_id(soeid, call)
        if found is None:
            self._remembered.pop(soeid, None)
            return False
        self._remembered[soeid] = found
        return True

    async def user_id(self, soeid: str, call: Call) -> int | None:
        """Return the id of a SOEID in lower case, None for nobody."""
        known = self._remembered.get(soeid)
        if known is None:
            known = await self._find_user_id(soeid, call)
            # Nobody is not remembered: a user who is added counts from the next call on.
            if known is not None:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.pop(next(iter(self._remembered)))
                self._remembered[soeid] = known
        return known


def _bearer_token(headers: Metadata) -> str:
    values = [value for key, value in headers if key == AUTHORIZATION]
    if not values:
        raise CredentialsMissing
    if len(values) > 1 or not isinstance(values[0], str):
        raise CredentialsInvalid("more than one authorization header, or one of bytes")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise CredentialsMissing
    return token.strip()


def _on_behalf_of(headers: Metadata) -> str | None:
    values = [value for key, value in headers if key == ON_BEHALF_OF]
    if not values:
        return None
    soeid = normalized_soeid(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if soeid is None:
        raise InvalidRequest([Violation(ON_BEHALF_OF, "must be one SOEID: two letters and five digits")])
    return soeid
