"""The core's own log: handshakes told with peer and reason, and nothing of ours or of a crash lost."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

START = """
import logging, os, sys
from jobs_service.telemetry.logs import configure_logging
from jobs_service.transport.core_log import captured
configure_logging("INFO")
"""


def run(program: str) -> tuple[int, list[str]]:
    """Run a program and return its exit code and the lines on its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", START + program], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr.splitlines()


def written(*records: str) -> list[dict[str, Any]]:
    """The log lines that come of the records that the core writes, one by one."""
    code, lines = run(f"with captured():\n    for each in {records!r}:\n        os.write(2, each.encode())")
    assert code == 0
    return [json.loads(line) for line in lines]


STAMP = "I1123 22:45:20.206792    3992"
ARGS = (
    " shutdown=false index=2, args={endpoint=0x7f, args={"
    "grpc.internal.endpoint_local_address=ipv4:127.0.0.1:7001,"
    " grpc.internal.endpoint_peer_address=ipv4:127.0.0.1:50082, grpc.so_reuseport=0}, exit_early=0}\n"
)
NEXT = f"{STAMP} handshaker.cc:155] CallNextHandshakerLocked: error="
OF_OPENSSL = "UNKNOWN: Ssl handshake failed (X): SSL_ERROR_SSL: error:1:SSL routines:OPENSSL_internal:"
TRACE = ": OK\n=== Source Location Trace: ===\nsrc/core/util/status_helper.cc:68\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            f"{OF_OPENSSL}WRONG_VERSION_NUMBER: Invalid certificate verification context{TRACE}",
            "wrong version number",
        ),
        (
            f"{OF_OPENSSL}CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate{TRACE}",
            "certificate verify failed: unable to get local issuer certificate",
        ),
        (
            "UNKNOWN: Cannot check peer: missing selected ALPN property.\n=== Source Location Trace: ===\n",
            "Cannot check peer: missing selected ALPN property.",
        ),
    ],
)
def test_a_failed_handshake_is_one_line_with_peer_and_reason(error: str, reason: str) -> None:
    before = f"{STAMP} ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: x\n"
    after = f"{STAMP} channel_trace.h:396] handshake manager 0x7f: Failed with error: {error}\n"
    (line,) = written(f"{NEXT}OK{ARGS}", before, f"{NEXT}{error}{ARGS}", after)
    assert (line["level"], line["message"]) == ("INFO", "TLS handshake refused")
    assert (line["peer"], line["listener"]) == ("ipv4:127.0.0.1:50082", "ipv4:127.0.0.1:7001")
    assert line["reason"] == reason


def test_handshakes_that_succeed_or_never_began_are_not_told() -> None:
    silent = "UNKNOWN: Handshake read failed (Socket closed)\n=== Source Location Trace: ===\na.cc:1\n"
    assert written(f"{NEXT}OK{ARGS}", f"{NEXT}{silent}{ARGS}") == []


def test_what_else_the_core_complains_of_is_a_line_too() -> None:
    lines = written(
        "E1123 22:57:38.096 12 add_port.cc:83] Failed to add\n", 'W1123 22:57:38.1 12 a.cc:1] Odd "thing"\n'
    )
    told = [(line["level"], line["message"], line["source"]) for line in lines]
    assert told == [("ERROR", "Failed to add", "add_port.cc:83"), ("WARNING", 'Odd "thing"', "a.cc:1")]


def test_what_the_core_complains_of_in_what_peers_send_fills_no_log() -> None:
    complaint = (
        "E1123 22:57:38.096 12 hpack_parser.cc:1048] Error parsing ':method' metadata: invalid value\n"
    )
    assert written(complaint) == []


@pytest.mark.parametrize("room", [10, 4096 - 40, 4096 * 3, 100_000])
def test_what_a_stranger_has_the_core_write_is_no_record_of_its_own(room: int) -> None:
    # At every place: at the beginning of a line, and where a packet of the pipe begins.
    forged = f"\n{STAMP} handshaker.cc:155] {OF_OPENSSL}FORGED{ARGS}"
    text = "W1123 22:57:38.1 12 a.cc:1] " + "x" * room + forged * 50
    assert len(written(text)) == 1
    assert written("I1123 22:57:38.1 12 a.cc:1] GOAWAY: " + "x" * room + forged * 50) == []


def test_what_others_write_passes_as_it_is() -> None:
    code, lines = run("with captured():\n    os.write(2, b'from the C library\\n')")
    assert (code, lines) == (0, ["from the C library"])


def test_python_writes_past_the_pipe_and_after_it() -> None:
    code, lines = run(
        "with captured():\n    logging.error('inside')\n    print('printed', file=sys.stderr)\n"
        "logging.error('outside')\nprint('at the end', file=sys.stderr)"
    )
    assert code == 0
    inside, printed, outside, end = lines
    assert (json.loads(inside)["message"], json.loads(outside)["message"]) == ("inside", "outside")
    assert (printed, end) == ("printed", "at the end")


def test_an_exception_that_nobody_catches_is_seen() -> None:
    code, lines = run("with captured():\n    raise RuntimeError('nobody catches it')")
    assert (code, lines[0], lines[-1]) == (
        *(1, "Traceback (most recent call last):"),
        "RuntimeError: nobody catches it",
    )


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_is_seen_with_the_stack(number: signal.Signals) -> None:
    code, lines = run(f"with captured():\n    os.kill(os.getpid(), {int(number)})")
    assert code == -number
    assert lines[0].startswith("Fatal Python error: ")
    assert any('File "<string>"' in line for line in lines)


def test_a_flood_holds_nobody_up() -> None:
    # More than the pipe holds, while the reader can't run: the rest is lost.
    code, lines = run(
        "import signal\nsys.setswitchinterval(100)\nsignal.alarm(20)\n"
        "def flood():\n"
        "    for _ in range(100_000):\n"
        "        try:\n            os.write(2, b'I1123 22:45:20.2 1 a.cc:1] ' + b'x' * 100 + b'\\n')\n"
        "        except BlockingIOError:\n            return True\n"
        "with captured():\n    print(flood(), file=sys.stderr)"
    )
    assert code == 0
    assert lines in (["True"], ["None"])
