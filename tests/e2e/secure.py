"""The running command with TLS and mTLS, and clients of every kind for it."""

import socket
import ssl
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.demo import Demo
from tests.support.certificates import SERVER_NAMES, Issued, authority, issue
from tests.support.client import Client

NAME = (("grpc.ssl_target_name_override", "jobs.example.org"), ("grpc.use_local_subchannel_pool", 1))


class SecureDemo(Demo):
    """A demo whose server certificate is issued by `server_ca`, and its callers' by `client_ca`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.keys = folder / "keys"
        self.keys.mkdir(parents=True)
        self.server_ca, self.client_ca = authority("server CA"), authority("client CA")
        self.server = issue("jobs", SERVER_NAMES, by=self.server_ca)
        self.cert_file, self.key_file = self.server.write(self.keys, "server")
        self.client_ca_file = self.keys / "client-ca.pem"
        self.client_ca_file.write_bytes(self.client_ca.pem)
        files = {
            "JOBS_TLS_CERT_FILE": str(self.cert_file),
            "JOBS_TLS_KEY_FILE": str(self.key_file),
            "JOBS_TLS_CLIENT_CA_FILE": str(self.client_ca_file),
            "JOBS_MTLS_LISTEN": "127.0.0.1:0",
        }
        super().__init__(folder, **(files | settings))

    @property
    def mtls_target(self) -> str:
        """HOST:PORT of the second listener."""
        return str(self.service.lines("serving")[-1]["mtls_target"])

    @contextmanager
    def channel(self, target: str, client: Issued | None = None) -> Iterator[grpc.Channel]:
        """A connection of its own, with TLS, that shows this certificate."""
        shown = (client.key, client.pem) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(self.server_ca.pem, *shown)
        with grpc.secure_channel(target, credentials, options=NAME) as channel:
            yield channel

    @contextmanager
    def calling(
        self,
        certificate: Issued | None = None,
        token: str | None = None,
        *,
        mtls: bool = True,
        on_behalf_of: str | None = None,
    ) -> Iterator[Client]:
        """A client of one of the listeners with this certificate and this token."""
        with self.channel(self.mtls_target if mtls else self.target, certificate) as channel:
            yield Client(channel, token, on_behalf_of=on_behalf_of)

    def refused_handshakes(self, peer: str) -> list[dict[str, Any]]:
        """What the log says of this peer's handshake."""
        return [line for line in self.service.lines("TLS handshake refused") if line["peer"] == peer]


@dataclass(frozen=True, slots=True)
class Handshake:
    """How one ended. peer: our end as the service calls it; version: None where it failed."""

    peer: str
    version: str | None
    certificate: bytes | None


def handshake(target: str, *versions: ssl.TLSVersion, client: Issued | None = None) -> Handshake:
    """Shake hands by hand, in this version alone if one is given, as a client that would speak HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    for version in versions:
        with warnings.catch_warnings():
            # That it is old is what the test is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
    if client is not None:
        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(*client.write(Path(folder), "client"))
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        peer = f"ipv4:{host}:{plain.getsockname()[1]}"
        try:
            with context.wrap_socket(plain) as secure:
                # In TLS 1.3 the server's refusal comes after our end of the handshake.
                if secure.recv(1):
                    return Handshake(peer, secure.version(), secure.getpeercert(binary_form=True))
        except (ssl.SSLError, ConnectionError):
            pass
    return Handshake(peer, None, None)
