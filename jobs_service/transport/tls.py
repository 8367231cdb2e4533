"""TLS for the listeners: gRPC's credentials, whose certificates can change while they are used."""

import logging
from collections.abc import Sequence
from pathlib import Path

import grpc

from jobs_service.transport.certificates import (
    ClientCertificates,
    ServerCertificate,
    parse_certificates,
    server_certificate,
)
from jobs_service.transport.key_files import KeyFiles

_log = logging.getLogger(__name__)


class Tls:
    """The service's certificate and the CAs of its callers, as they are now.

    New connections are made with what is there when they come; those that live go on. gRPC's minimum is
    TLS 1.2. Constructed it has loaded its files: raises UnusableKey.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        self.clients = ClientCertificates()
        self._paths = (cert_file, key_file)
        self._certificate: ServerCertificate
        self._client_cas: bytes | None = None
        self._client_ca_file = client_ca_file
        self.files = [KeyFiles("the service's certificate", self._paths, self._take_certificate)]
        if client_ca_file is not None:
            self.files.append(KeyFiles("the CAs of callers", [client_ca_file], self._take_client_cas))
        for group in self.files:
            group.load()

    @property
    def certificate(self) -> ServerCertificate:
        """The certificate that new connections get."""
        return self._certificate

    def credentials(self, *, ask_for_certificates: bool) -> grpc.ServerCredentials:
        """Return what a listener is added with. With certificates, nobody without one gets through."""
        given = self._material(ask_for_certificates)

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called by a thread of gRPC's before every handshake.
            nonlocal given
            found = self._material(ask_for_certificates)
            if found == given:
                return None
            given = found
            return _configuration(*found)

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            _configuration(*given),
            # None is for "as before"; the type stubs don't know.
            fetch,  # type: ignore[arg-type]
            require_client_authentication=ask_for_certificates,
        )
        return credentials

    def _material(self, ask_for_certificates: bool) -> tuple[bytes, bytes, bytes | None]:
        certificate = self._certificate
        return certificate.key, certificate.chain, self._client_cas if ask_for_certificates else None

    def _take_certificate(self, contents: Sequence[bytes]) -> dict[str, object]:
        certificate = server_certificate(self._paths, contents)
        described, problem = certificate.describe(), certificate.problem
        self._certificate = certificate
        if problem:
            _log.warning(problem, extra={"fields": described})
        return described

    def _take_client_cas(self, contents: Sequence[bytes]) -> dict[str, object]:
        assert self._client_ca_file is not None  # noqa: S101 - or nobody calls this
        authorities = parse_certificates(self._client_ca_file, contents[0])
        subjects = [authority.subject.rfc4514_string() for authority in authorities]
        self._client_cas = contents[0]
        self.clients.trust(authorities)
        return {"subjects": subjects}


def _configuration(key: bytes, chain: bytes, client_cas: bytes | None) -> grpc.ServerCertificateConfiguration:
    made: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
        [(key, chain)], client_cas
    )
    return made
