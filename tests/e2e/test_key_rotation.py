"""Keys and certificates that change while the service runs, and files that must not be taken."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobs.v1 import jobs_pb2
from tests.e2e.demo import ALICE, PROGRAM, Demo
from tests.e2e.secure import SecureDemo, handshake
from tests.support.certificates import SERVER_NAMES, Issued, authority, issue, uri
from tests.support.client import Client, rich_error
from tests.support.scrape import scrape
from tests.support.service import wait_until

TAKEN = {
    "certificate": "the service's certificate read again",
    "CAs": "the CAs of callers read again",
    "keys": "the keys of tokens read again",
}
REFUSED = {
    "certificate": "the service's certificate can't be used, the one before stays",
    "CAs": "the CAs of callers can't be used, the one before stays",
    "keys": "the keys of tokens can't be used, the one before stays",
}


def count(demo: Demo, message: str) -> int:
    return len(demo.service.lines(message))


@contextmanager
def told(demo: Demo, message: str) -> Iterator[None]:
    """Wait until the log has this line once more than before the block."""
    before = count(demo, message)
    yield
    wait_until(lambda: count(demo, message) > before, 20, message)
    assert count(demo, message) == before + 1


def replace(path: Path, content: bytes) -> None:
    """As careful programs do: written beside, then renamed."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(content)
    draft.rename(path)


def served(demo: SecureDemo) -> bytes | None:
    """The certificate that a new connection is shown."""
    return handshake(demo.target).certificate


def der(certificate: Issued) -> bytes:
    return certificate.certificate.public_bytes(Encoding.DER)


def shown(demo: Demo) -> tuple[float, float]:
    """What the metrics say: whether the certificate's files are refused, and when the certificate ends."""
    found = scrape(demo.service)
    refused = found.value("jobs_key_files_refused", files="the service's certificate")
    return refused, found.value("jobs_certificate_expiry_timestamp_seconds")


def expiry(certificate: Issued) -> float:
    return certificate.certificate.not_valid_after_utc.timestamp()


def test_a_new_certificate_is_taken_while_connections_live_on(tmp_path: Path) -> None:
    metrics = {"JOBS_METRICS_LISTEN": "127.0.0.1:0"}
    with SecureDemo(tmp_path, **metrics) as demo, demo.channel(demo.target) as channel:
        alice = Client(channel, demo.token(ALICE))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=120)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert served(demo) == der(demo.server)
        new = issue("jobs", SERVER_NAMES, by=demo.server_ca, seconds=(-3600, 7200))
        with told(demo, REFUSED["certificate"]):
            # One after the other: in between they don't belong together.
            replace(demo.cert_file, new.pem)
        assert served(demo) == der(demo.server)
        assert shown(demo) == (1, expiry(demo.server))
        with told(demo, TAKEN["certificate"]):
            replace(demo.key_file, new.key)
        assert served(demo) == der(new)
        assert shown(demo) == (0, expiry(new))
        assert demo.service.lines(TAKEN["certificate"])[0]["serial"] == f"{new.certificate.serial_number:x}"
        for broken in (b"", b"-----BEGIN CERTIFICATE-----\n", demo.server.pem):
            with told(demo, REFUSED["certificate"]):
                demo.cert_file.write_bytes(broken)
            assert served(demo) == der(new)
        with told(demo, REFUSED["certificate"]):
            demo.cert_file.unlink()
        assert served(demo) == der(new)
        demo.cert_file.write_bytes(new.pem)
        assert demo.done("health") == "SERVING"
        # The first connection has seen nothing of all this.
        assert alice.create().job.user_soeid == ALICE
        assert {line["peer"] for line in demo.service.lines("call") if line["caller"] == ALICE} == {
            line["peer"] for line in demo.service.lines("call") if line["method"].endswith("CreateJob")
        }
        assert watch.is_active()
        watch.cancel()
        log = demo.service.log_file.read_text()
        assert not any(part in log for part in new.key.decode().splitlines()[1:-1])


def test_the_ca_of_callers_is_changed_without_a_gap(tmp_path: Path) -> None:
    with SecureDemo(tmp_path) as demo:
        second = authority("second client CA")
        names = [uri(f"soeid:{PROGRAM}")]
        old, new = (issue("a caller", names, by=by) for by in (demo.client_ca, second))
        assert handshake(demo.mtls_target, client=new).version is None
        with demo.calling(old) as of_old:
            assert of_old.list() is not None
            with told(demo, TAKEN["CAs"]):
                demo.client_ca_file.write_bytes(demo.client_ca.pem + second.pem)
            assert of_old.list() is not None
            for client in (old, new):
                assert handshake(demo.mtls_target, client=client).version
            with demo.calling(new) as of_new:
                assert of_new.list() is not None
                with told(demo, REFUSED["CAs"]):
                    demo.client_ca_file.write_bytes(b"no certificate")
                assert of_old.list() is not None
                with told(demo, TAKEN["CAs"]):
                    replace(demo.client_ca_file, second.pem)
                assert of_new.list() is not None
                # The connection lives, what its certificate was issued by counts no more.
                assert refusal(demo, of_old) == "the certificate's CA is no longer trusted"
        assert handshake(demo.mtls_target, client=old).version is None
        assert handshake(demo.mtls_target, client=new).version


def refusal(demo: Demo, client: Client) -> str:
    """Be refused for the credentials, and return what the log says of it; empty where the call succeeds."""
    correlation_id = str(uuid.uuid4())
    request, metadata = jobs_pb2.ListJobsRequest(), (("x-correlation-id", correlation_id),)
    call = client.stub.ListJobs.future(request, metadata=client.metadata + metadata, timeout=30)
    error = call.exception()
    if error is None:
        return ""
    assert rich_error(error).reason == "CREDENTIALS_INVALID"

    def found() -> list[dict[str, Any]]:
        return [line for line in demo.service.lines("call") if line["correlation_id"] == correlation_id]

    (line,) = wait_until(found, 10, "the access log's line")
    return str(line["detail"])


def jwks(**keys: Any) -> bytes:
    """A JWKS with the public parts of these keys, by kid."""
    members = []
    for kid, key in keys.items():
        is_curve = isinstance(key, ec.EllipticCurvePrivateKey)
        kind: Any = jwt.algorithms.ECAlgorithm if is_curve else jwt.algorithms.OKPAlgorithm
        members.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    return json.dumps({"keys": members}).encode()


def token(key: Any, algorithm: str, kid: str | None = None) -> str:
    claims = {"sub": ALICE, "exp": int(time.time()) + 600}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


class Mount:
    """A Secret as Kubernetes mounts it: the file is a link into ..data, a link that is swapped."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self._folder, self._version = folder, 0
        folder.mkdir()
        self.swap(content)
        self.path = folder / "keys.json"
        self.path.symlink_to("..data/keys.json")

    def swap(self, content: bytes) -> None:
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        (version / "keys.json").write_bytes(content)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        os.rename(link, self._folder / "..data")


def test_a_jwks_changes_keys_without_a_gap(tmp_path: Path) -> None:
    first, second = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    mount = Mount(tmp_path / "secret", jwks(first=first))
    with Demo(tmp_path, JOBS_JWT_JWKS_FILE=str(mount.path)) as demo:
        with grpc.insecure_channel(demo.target) as channel:
            old, new = (
                Client(channel, token(key, algorithm, kid))
                for key, algorithm, kid in ((first, "ES256", "first"), (second, "EdDSA", "second"))
            )
            nameless = Client(channel, token(second, "EdDSA"))
            assert refusal(demo, old) == ""
            assert refusal(demo, new) == "the token's kid is not known"
            with told(demo, TAKEN["keys"]):
                mount.swap(jwks(first=first, second=second))
            assert [refusal(demo, client) for client in (old, new, nameless)] == ["", "", ""]
            with told(demo, REFUSED["keys"]):
                mount.swap(jwks(first=first, second=second)[:-5])
            assert [refusal(demo, client) for client in (old, new)] == ["", ""]
            with told(demo, TAKEN["keys"]):
                mount.swap(jwks(second=second))
            # It was checked before and remembered: that is over too.
            assert refusal(demo, old) == "the token's kid is not known"
            assert refusal(demo, new) == ""
            taken = demo.service.lines(TAKEN["keys"])[-1]["keys"]
            assert taken == [{"kid": "second", "algorithm": "EdDSA"}]
        log = demo.service.log_file.read_text()
        assert not any(str(client.metadata[0][1]) in log for client in (old, new, nameless))
        assert demo.command("token", ALICE).returncode == 3
        assert "EdDSA (second)" in demo.done("check")


@pytest.mark.parametrize("write", [replace, Path.write_bytes], ids=["renamed", "written over"])
def test_a_key_file_that_is_replaced_counts_at_once(
    tmp_path: Path, write: Callable[[Path, bytes], Any]
) -> None:
    first, second = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))

    def pem(key: ed25519.Ed25519PrivateKey) -> bytes:
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    path = tmp_path / "key.pem"
    path.write_bytes(pem(first))
    with (
        Demo(tmp_path, JOBS_JWT_KEY_FILE=str(path)) as demo,
        grpc.insecure_channel(demo.target) as channel,
    ):
        old, new = (Client(channel, token(key, "EdDSA", "any")) for key in (first, second))
        wrong = "the token's signature is wrong"
        assert [refusal(demo, client) for client in (old, new)] == ["", wrong]
        with told(demo, TAKEN["keys"]):
            write(path, pem(second))
        assert [refusal(demo, client) for client in (old, new)] == [wrong, ""]
        with told(demo, REFUSED["keys"]):
            write(path, b"short")
        assert [refusal(demo, client) for client in (old, new)] == [wrong, ""]


def test_a_certificate_that_has_expired_is_served_with_a_warning(tmp_path: Path) -> None:
    expired = issue("jobs", SERVER_NAMES, seconds=(-7200, -3600))
    cert_file, key_file = expired.write(tmp_path, "server")
    files = {"JOBS_TLS_CERT_FILE": str(cert_file), "JOBS_TLS_KEY_FILE": str(key_file)}
    with Demo(tmp_path, **files) as demo:
        assert demo.service.lines("the service's certificate has expired")
        assert handshake(demo.target).certificate == der(expired)
        assert "TLS: CN=jobs, the service's certificate has expired" in demo.done("check")
