"""Metrics and probes over HTTP, on a port and threads of their own: they answer while gRPC is overloaded."""

import asyncio
import contextlib
import errno
import http.client
import io
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

MAX_CONNECTIONS = 32
"""Each has a thread. One more, and the oldest is cut: a probe always gets in."""
MAX_SECONDS = 10.0
"""How long a connection may last, however busily it drips."""
MAX_HEADER_BYTES = 65536
"""All headers of a request together."""
_IDLE_SECONDS = 5
_LIVE_SECONDS = 2.0
_POLL_SECONDS = 0.25
_FILES_SECONDS = 0.1

_log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


def make_app(registry: CollectorRegistry, is_ready: Callable[[], bool], is_live: Callable[[], bool]) -> App:
    """Return the WSGI app with /metrics, /ready and /live. Everything else is 404, any other method 405."""
    metrics: App = make_wsgi_app(registry, disable_compression=True)
    probes = {"/ready": is_ready, "/live": is_live}

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path != "/metrics" and path not in probes:
            return _plain(start_response, "404 Not Found")
        if environ["REQUEST_METHOD"] != "GET":
            return _plain(start_response, "405 Method Not Allowed", ("Allow", "GET"))
        if path == "/metrics":
            return metrics(environ, start_response)
        return _plain(start_response, "200 OK" if probes[path]() else "503 Service Unavailable")

    return app


def _plain(start_response: StartResponse, status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = f"{status}\n".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])
    return [body]


def answers(loop: asyncio.AbstractEventLoop, seconds: float = _LIVE_SECONDS) -> bool:
    """Whether the event loop of another thread answers within these seconds."""
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # the loop is closed
        return False
    return answered.wait(seconds)


class _Quiet(ServerHandler):
    """Says nothing on stderr about clients that leave, and nothing to them about our versions."""

    server_software = "jobs-service"

    def get_stderr(self) -> Any:
        """Take the traceback of a broken connection."""
        return io.StringIO()


class _Capped:
    """Lines of a stream, as long as they are not too many bytes together."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int) -> bytes:
        """Return the next line, or as much of it. Raises LineTooLong, which the library answers with 431."""
        line = self._stream.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("headers")
        return line


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_SECONDS
    server_version, sys_version = "jobs-service", ""

    def handle(self) -> None:
        """Answer one request; the same as wsgiref does, but quiet."""
        self.raw_requestline = self.rfile.readline(8193)
        if len(self.raw_requestline) > 8192:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            handler = _Quiet(
                cast(IO[bytes], self.rfile), cast(IO[bytes], self.wfile), io.StringIO(), self.get_environ()
            )
            handler.request_handler = self  # type: ignore[attr-defined] # as wsgiref does
            handler.run(self.server.get_app())  # type: ignore[attr-defined]

    def parse_request(self) -> bool:
        """Read the headers; false where they were refused."""
        stream = self.rfile
        self.rfile = cast(io.BufferedIOBase, _Capped(stream))
        try:
            return super().parse_request()
        finally:
            self.rfile = stream

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Leave out the line that a probe would write every second."""

    def address_string(self) -> str:
        """Return the client's address as it is: no name is looked up."""
        return str(self.client_address[0])


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection, and never more than MAX_CONNECTIONS of them for long."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, app: App) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}
        super().__init__((host, port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; without free files it stays, and would be tried again at once for ever."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                time.sleep(_FILES_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection's thread, and cut the oldest connection if there are too many."""
        with self._lock:
            self._began[request] = time.monotonic()
            if len(self._began) > MAX_CONNECTIONS:
                self._cut(next(iter(self._began)))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut the connections that have lasted too long; called several times a second."""
        self.cut_those_before(time.monotonic() - MAX_SECONDS)

    def cut_those_before(self, moment: float) -> None:
        """Cut the connections that began before a moment of the monotonic clock."""
        with self._lock:
            for request in [request for request, began in self._began.items() if began <= moment]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        # Only shut: its thread finds the end of the stream, closes it and goes.
        self._began.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave clients that drop their connection out of the log."""
        _log.debug("a request for metrics failed", exc_info=True)


class MetricsServer:
    """Serves an app until closed. Raises OSError where the address can't be listened on."""

    def __init__(self, host: str, port: int, app: App) -> None:
        self._server = _Server(host, port, app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; connections that are open are cut."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._server.cut_those_before(time.monotonic())
