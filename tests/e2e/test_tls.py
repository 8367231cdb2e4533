"""TLS and mTLS: who gets through the handshake, who is who behind it, and what the log tells of the rest."""

import shutil
import socket
import ssl
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from cryptography import x509

from jobs.v1 import jobs_pb2
from tests.e2e.demo import ADMIN, ALICE, BOB, EVE, PROGRAM
from tests.e2e.secure import SecureDemo, handshake
from tests.support.certificates import SERVER_AUTH, Issued, authority, issue, uri
from tests.support.client import Client, refused
from tests.support.service import wait_until

TLS = ssl.TLSVersion


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureDemo]:
    with SecureDemo(tmp_path_factory.mktemp("secure")) as running:
        yield running


@pytest.fixture(scope="module")
def stranger() -> Issued:
    """A CA that nobody trusts, of the same name as the trusted one."""
    return authority("client CA")


def caller(demo: SecureDemo, *names: x509.GeneralName, **more: Any) -> Issued:
    return issue("a caller", names, by=demo.client_ca, **more)


def program(demo: SecureDemo) -> Issued:
    return caller(demo, uri(f"soeid:{PROGRAM}"))


def told_refusal(demo: SecureDemo, peer: str) -> dict[str, Any]:
    (line,) = wait_until(lambda: demo.refused_handshakes(peer), 10, "the line about the handshake")
    return dict(line)


def detail_of(demo: SecureDemo, client: Client, code: str, reason: str) -> str:
    """Call, be refused so, and return what the log alone is told of it."""
    correlation_id = str(uuid.uuid4())
    with refused(code, reason) as refusal:
        client.call("ListJobs", jobs_pb2.ListJobsRequest(), metadata=(("x-correlation-id", correlation_id),))
    assert refusal.it.metadata.keys() <= {"user_soeid"}

    def found() -> list[dict[str, Any]]:
        return [line for line in demo.service.lines("call") if line["correlation_id"] == correlation_id]

    (line,) = wait_until(found, 10, "the access log's line")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    detail = str(line.get("detail", ""))
    assert not detail or detail not in refusal.it.message
    return detail


@pytest.mark.parametrize("version", [TLS.TLSv1_2, TLS.TLSv1_3])
def test_new_versions_of_tls_are_spoken_on_both_listeners(demo: SecureDemo, version: ssl.TLSVersion) -> None:
    spoken = version.name.replace("_", ".")
    assert handshake(demo.target, version).version == spoken
    assert handshake(demo.mtls_target, version, client=program(demo)).version == spoken


@pytest.mark.parametrize("version", [TLS.TLSv1, TLS.TLSv1_1])
@pytest.mark.parametrize("listener", ["target", "mtls_target"])
def test_old_versions_of_tls_are_refused_and_logged(
    demo: SecureDemo, version: ssl.TLSVersion, listener: str
) -> None:
    target = getattr(demo, listener)
    tried = handshake(target, version, client=program(demo))
    assert tried.version is None
    line = told_refusal(demo, tried.peer)
    assert (line["reason"], line["listener"]) == ("unsupported protocol", f"ipv4:{target}")


def test_openssl_is_let_in_with_new_versions_alone(demo: SecureDemo) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")

    def shakes_hands(*version: str) -> bool:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", demo.target, "-alpn", "h2", *version],
            input=b"",
            capture_output=True,
            timeout=30,
        )
        return b"ALPN protocol: h2" in done.stdout

    old = ("-cipher", "DEFAULT:@SECLEVEL=0")
    assert [shakes_hands("-tls1_2"), shakes_hands("-tls1_3")] == [True, True]
    assert [shakes_hands("-tls1", *old), shakes_hands("-tls1_1", *old)] == [False, False]


@pytest.mark.parametrize("listener", ["target", "mtls_target"])
@pytest.mark.parametrize("sent", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64])
def test_what_is_not_tls_is_refused_and_logged(demo: SecureDemo, listener: str, sent: bytes) -> None:
    host, _, port = getattr(demo, listener).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""
        peer = f"ipv4:{host}:{connection.getsockname()[1]}"
    assert told_refusal(demo, peer)["reason"]


def test_a_client_without_tls_gets_no_answer(demo: SecureDemo) -> None:
    with grpc.insecure_channel(demo.target) as channel, pytest.raises(grpc.RpcError) as caught:
        Client(channel, demo.token(ALICE)).list()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_look_whether_the_port_is_open_is_no_refusal(demo: SecureDemo) -> None:
    host, _, port = demo.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        peer = f"ipv4:{host}:{connection.getsockname()[1]}"
    tried = handshake(demo.target, TLS.TLSv1_1)
    told_refusal(demo, tried.peer)
    assert demo.refused_handshakes(peer) == []


@pytest.mark.long
def test_who_connects_and_says_nothing_is_put_out(demo: SecureDemo) -> None:
    host, _, port = demo.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        peer = f"ipv4:{host}:{connection.getsockname()[1]}"
        assert connection.recv(1) == b""
    assert told_refusal(demo, peer)["reason"] == "not finished in time"


def test_only_certificates_of_the_callers_ca_get_through(demo: SecureDemo, stranger: Issued) -> None:
    names = [uri(f"soeid:{PROGRAM}")]
    unknown = "certificate verify failed: "
    refusals = [
        (None, "peer did not return a certificate"),
        (issue("a caller", names, by=stranger), "bad signature: certificate signature failure"),
        (issue("a caller", names, by=demo.server_ca), unknown),
        (issue("a caller", names), unknown),
        (issue("a caller", names, by=caller(demo)), unknown),
        (caller(demo, *names, seconds=(-7200, -3600)), f"{unknown}certificate has expired"),
        (caller(demo, *names, seconds=(3600, 7200)), f"{unknown}certificate is not yet valid"),
        (caller(demo, *names, usage=SERVER_AUTH), unknown),
    ]
    for client, reason in refusals:
        for version in (TLS.TLSv1_2, TLS.TLSv1_3):
            tried = handshake(demo.mtls_target, version, client=client)
            assert tried.version is None, reason
            line = told_refusal(demo, tried.peer)
            assert line["listener"] == f"ipv4:{demo.mtls_target}"
            assert line["reason"].startswith(reason)
    assert handshake(demo.mtls_target, client=program(demo)).version == "TLSv1.3"


def test_a_certificate_by_a_ca_in_between_gets_through(demo: SecureDemo) -> None:
    between = authority("team CA", by=demo.client_ca)
    with demo.calling(issue("a caller", [uri(f"soeid:{PROGRAM}")], by=between)) as client:
        assert client.list() is not None


def test_a_certificate_calls_with_the_rights_of_its_soeid(demo: SecureDemo) -> None:
    with demo.calling(program(demo), on_behalf_of=ALICE) as client:
        job = client.create().job
        assert (job.user_soeid, job.creator_soeid) == (ALICE, PROGRAM)
    with demo.calling(caller(demo, uri(f"soeid:{ALICE}"))) as client:
        assert client.get(job.job_id).user_soeid == ALICE
        assert client.create().job.creator_soeid == ""
    with demo.calling(caller(demo, uri(f"soeid:{ADMIN}"))) as client:
        assert client.get(job.job_id)
    with demo.calling(caller(demo, uri(f"soeid:{EVE}"))) as client:
        with refused("NOT_FOUND", "JOB_NOT_FOUND"):
            client.get(job.job_id)
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
            client.create()
    with (
        demo.calling(caller(demo, uri(f"soeid:{BOB}")), on_behalf_of=ALICE) as client,
        refused("PERMISSION_DENIED", "ROLE_REQUIRED"),
    ):
        client.create()
    with demo.calling(caller(demo, uri("soeid:zz99999"))) as client:
        detail = detail_of(demo, client, "UNAUTHENTICATED", "CALLER_UNKNOWN")
        assert detail == "nobody has the SOEID zz99999"


NAMED = [
    (uri(f"soeid:{PROGRAM.upper()}"),),
    (uri(f"SOEID:{PROGRAM}"),),
    (uri("spiffe://example.org/jobs"), uri(f"soeid:{PROGRAM}"), x509.DNSName("caller.example.org")),
    (uri(f"soeid:{PROGRAM}"), x509.DNSName(f"soeid:{ALICE}"), x509.RFC822Name("soeid@example.org")),
]


@pytest.mark.parametrize("names", NAMED)
def test_one_uri_names_the_caller_whatever_else_is_there(
    demo: SecureDemo, names: Sequence[x509.GeneralName]
) -> None:
    with demo.calling(caller(demo, *names), on_behalf_of=ALICE) as client:
        assert client.create().job.creator_soeid == PROGRAM


NAMELESS = [
    ((), "no SOEID in the certificate"),
    ((x509.DNSName(f"soeid:{PROGRAM}"),), "no SOEID in the certificate"),
    ((x509.RFC822Name(f"soeid:{PROGRAM}"),), "no SOEID in the certificate"),
    ((uri(f"https://soeid:{PROGRAM}"),), "no SOEID in the certificate"),
    ((uri(f"xsoeid:{PROGRAM}"),), "no SOEID in the certificate"),
    ((uri(f"soeid:{PROGRAM}"), uri(f"soeid:{ALICE}")), "several SOEIDs in the certificate"),
    ((uri(f"soeid:{PROGRAM}"), uri(f"SOEID:{PROGRAM}")), "several SOEIDs in the certificate"),
    ((uri(f"soeid:{PROGRAM}"), uri("soeid:")), "several SOEIDs in the certificate"),
    ((uri("soeid:"),), "what the certificate names is no SOEID"),
    ((uri("soeid:sv0001"),), "what the certificate names is no SOEID"),
    ((uri(f"soeid:{PROGRAM} "),), "what the certificate names is no SOEID"),
    ((uri(f"soeid://{PROGRAM}"),), "what the certificate names is no SOEID"),
    ((uri(f"soeid:{PROGRAM}\0"),), "what the certificate names is no SOEID"),
    ((uri(f"soeid:{PROGRAM}?{ALICE}"),), "what the certificate names is no SOEID"),
]


@pytest.mark.parametrize(("names", "detail"), NAMELESS, ids=repr)
def test_a_certificate_that_names_nobody_is_refused(
    demo: SecureDemo, names: Sequence[x509.GeneralName], detail: str
) -> None:
    # The common name says it too: that never counts.
    certificate = issue(f"soeid:{PROGRAM}", names, by=demo.client_ca)
    with demo.calling(certificate) as client:
        assert detail_of(demo, client, "UNAUTHENTICATED", "CREDENTIALS_INVALID") == detail


def test_a_token_decides_beside_a_certificate(demo: SecureDemo) -> None:
    with demo.calling(program(demo), demo.token(ALICE)) as client:
        job = client.create().job
        assert (job.user_soeid, job.creator_soeid) == (ALICE, "")
    forged = demo.token(EVE).rpartition(".")[0] + "." + demo.token(ALICE).rpartition(".")[2]
    with demo.calling(program(demo), forged) as client:
        detail = detail_of(demo, client, "UNAUTHENTICATED", "CREDENTIALS_INVALID")
        assert detail == "the token's signature is wrong"
    with demo.calling(program(demo)) as client:
        client.metadata = (("authorization", "Basic c3YwMDAwMTp4"),)
        assert detail_of(demo, client, "UNAUTHENTICATED", "CREDENTIALS_MISSING") == ""


def test_a_certificate_is_nobody_on_the_listener_that_asks_for_none(demo: SecureDemo) -> None:
    with demo.calling(program(demo), mtls=False) as client:
        assert detail_of(demo, client, "UNAUTHENTICATED", "CREDENTIALS_MISSING") == ""
    with demo.calling(None, demo.token(ALICE), mtls=False) as client:
        assert client.create().job.user_soeid == ALICE


def test_a_certificate_that_expires_is_refused_on_its_living_connection(demo: SecureDemo) -> None:
    short = caller(demo, uri(f"soeid:{PROGRAM}"), seconds=(-60, 5))
    with demo.calling(short) as client:
        assert client.list() is not None

        def is_refused() -> bool:
            try:
                client.list()
            except grpc.RpcError:
                return True
            return False

        wait_until(is_refused, 20, "the certificate's end")
        detail = detail_of(demo, client, "UNAUTHENTICATED", "CREDENTIALS_INVALID")
        assert detail == "the certificate has expired"
        calls = demo.service.lines("call")
        peers = {line["peer"] for line in calls if line.get("detail") == detail}
        assert peers & {line["peer"] for line in calls if line["code"] == "OK"}


def test_health_is_told_over_tls_and_not_without(demo: SecureDemo) -> None:
    assert demo.done("health") == "SERVING"
    assert demo.done("health", "liveness") == "SERVING"
    settings = demo.settings | {"JOBS_TLS_CERT_FILE": "", "JOBS_TLS_KEY_FILE": ""}
    settings |= {"JOBS_MTLS_LISTEN": "", "JOBS_TLS_CLIENT_CA_FILE": ""}
    without = demo.command_with(settings, "health")
    assert (without.returncode, without.stdout.strip()) == (9, "UNAVAILABLE")


def test_check_tells_of_the_certificate(demo: SecureDemo) -> None:
    assert "TLS: CN=jobs, good until " in demo.done("check")


def test_the_printed_lines_trust_the_certificate(demo: SecureDemo) -> None:
    lines = [line for line in demo.service.out_file.read_text().splitlines() if "grpcurl" in line]
    assert len(lines) == 5
    assert all(f"-cacert {demo.cert_file} -servername jobs.example.org" in line for line in lines)
    assert not any("-plaintext" in line for line in lines)


def test_files_that_stay_as_they_are_are_not_taken_again(demo: SecureDemo) -> None:
    # Looked at once a second since the first test began.
    assert not [line for line in demo.service.lines() if "read again" in line["message"]]


def test_nothing_secret_and_nothing_raw_is_in_the_log(demo: SecureDemo) -> None:
    log = demo.service.log_file.read_text()
    assert all(line.startswith("{") for line in log.splitlines())
    secrets = demo.key_file.read_text().splitlines()[1:-1]
    assert not any(part in log for part in (*secrets, demo.token(ALICE), "PRIVATE KEY"))
