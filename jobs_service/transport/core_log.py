"""What gRPC's core writes to stderr by itself, made log lines: refused TLS handshakes above all.

A handshake that fails dies inside the core, which tells nobody but its own log. So file descriptor 2 becomes
a pipe, a thread reads it, and Python, faulthandler included, writes to the stderr that was there before.
"""

import faulthandler
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from select import POLLIN, poll
from typing import TextIO

_TRACE = "GRPC_TRACE"
_PIPE_BYTES = 1024 * 1024
_PACKET_BYTES = 4096
_REST_MILLISECONDS = 50
_LONGEST_RECORD = 64 * 1024
_STDERR = 2

_RECORD = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([\w./-]+:\d+)\] ")
_LEVELS = {"I": logging.DEBUG, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_STEP = "CallNextHandshakerLocked: error="
_HANDSHAKE = re.compile(
    rf"{_STEP}(?P<error>.+?)(?: shutdown=\w+)? index=\d+, args=.*?"
    r"endpoint_local_address=(?P<listener>[^,}]+), .*?endpoint_peer_address=(?P<peer>[^,}]+)",
    re.DOTALL,
)
_OPENSSL = re.compile(r"OPENSSL_internal:([A-Z0-9_]+)(?:: ([a-z][\w ,-]+))?")
# What the core says of itself whenever it traces, or says a second time; and what strangers have written.
_LEFT_OUT = re.compile(r"Log level \w+ is not suitable|Handshake failed with error|gRPC Tracers:|GOAWAY")
# Where the core reads what its peers send: whoever sends rubbish must not be able to fill the log.
_OF_PEERS = re.compile(r"(hpack|frame|chttp2|http2|parsing|huffsyms|transport)")
# Somebody connected and said nothing, as load balancers do to see whether the port is open.
_SILENT = re.compile(r"Socket closed|Connection reset|[Ss]hutdown")
# What is left of a handshake that took longer than the server's options allow.
_ENDED = "Endpoint closing"

_log = logging.getLogger(__name__)
_core = logging.getLogger("grpc")


def ask_for_handshakes(environment: MutableMapping[str, str]) -> None:
    """Have the core tell of handshakes. It reads its environment when grpc is imported: call this before."""
    asked = environment.get(_TRACE)
    environment[_TRACE] = f"{asked},handshaker" if asked else "handshaker"


@contextmanager
def captured() -> Iterator[None]:
    """Make log lines of what the core writes for as long as the block lasts."""
    sys.stderr.flush()
    before, dumped = sys.stderr, faulthandler.is_enabled()
    real = os.dup(_STDERR)
    # One packet for each write: what a stranger has the core write can't pass for a record of its own.
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    # Where the kernel grants less, less fits.
    with suppress(OSError):
        fcntl(writing, F_SETPIPE_SZ, _PIPE_BYTES)
    # The core must never wait for us: what does not fit is lost, and it is the core's alone.
    os.set_blocking(writing, False)
    with os.fdopen(real, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as stderr:
        _write_to(stderr, before)
        faulthandler.enable(stderr)
        os.dup2(writing, _STDERR)
        os.close(writing)
        reader = threading.Thread(target=_read, args=(reading, real), name="core-log", daemon=True)
        reader.start()
        try:
            yield
        finally:
            # Closes the last writing end: the thread reads to the end of the pipe.
            os.dup2(real, _STDERR)
            reader.join(1)
            _write_to(before, stderr)
            if dumped:
                faulthandler.enable(before)
            else:
                faulthandler.disable()


def _write_to(stream: TextIO, instead_of: TextIO) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is instead_of:
            handler.setStream(stream)
    sys.stderr = stream


def _read(reading: int, real: int) -> None:
    record, more = b"", poll()
    more.register(reading, POLLIN)
    while packet := os.read(reading, _PACKET_BYTES):
        record = (record + packet)[:_LONGEST_RECORD]
        # Only what fills its packet goes on in the next one, which is there already.
        if len(packet) < _PACKET_BYTES or not more.poll(_REST_MILLISECONDS):
            _tell(record, real)
            record = b""
    _tell(record, real)
    os.close(reading)


def _tell(record: bytes, real: int) -> None:
    text = record.decode("utf-8", "replace")
    found = _RECORD.match(text)
    if found is None:
        # Not the core's: the interpreter's, or the C library's, on their way down.
        os.write(real, record)
    else:
        _tell_record(found[1], found[2], text[found.end() :].strip())


def _tell_record(letter: str, source: str, message: str) -> None:
    failed = message.startswith(_STEP) and not message.startswith(f"{_STEP}OK")
    handshake = _HANDSHAKE.match(message) if failed else None
    if handshake is not None:
        _tell_handshake(handshake)
        return
    level = logging.DEBUG if _OF_PEERS.match(source) else _LEVELS[letter]
    if _core.isEnabledFor(level) and not _LEFT_OUT.search(message):
        _core.log(level, "%s", message, extra={"fields": {"source": source}})


def _tell_handshake(found: re.Match[str]) -> None:
    error = found["error"]
    fields = {"listener": found["listener"], "peer": found["peer"], "reason": _reason(error)}
    level = logging.DEBUG if _SILENT.search(error) else logging.INFO
    _log.log(level, "TLS handshake refused", extra={"fields": fields})


def _reason(error: str) -> str:
    """What went wrong, in one line: OpenSSL's own words where it has some."""
    said = _OPENSSL.search(error)
    if _ENDED in error:
        return "not finished in time"
    if said is None:
        return error.partition("\n")[0].partition(": ")[2] or error
    why = said[2] if said[2] and "Invalid certificate verification context" not in said[2] else None
    return said[1].lower().replace("_", " ") + (f": {why}" if why else "")
