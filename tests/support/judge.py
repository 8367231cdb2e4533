"""Sends anything to the service, and judges every answer by the rules that hold for all of them."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from jobs.v1 import access_pb2, jobs_pb2, workers_pb2
from tests.support.client import Client, Metadata, RichError, rich_error
from tests.support.world import World

SERVICE = jobs_pb2.DESCRIPTOR.services_by_name["JobsService"]
METHODS = {method.name: method for method in SERVICE.methods}
EVERY_METHOD = METHODS | {
    method.name: method
    for file in (workers_pb2, access_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Those of WorkersService and AccessService too. No two have the same name."""
DEADLINE = 10.0

# What would show the inside: paths of files, statements, names of libraries and of exceptions.
_LEAK = re.compile(
    r"traceback|psycopg|sqlalchemy|jsonschema|orjson|pyjwt|SELECT |INSERT |UPDATE jobs|site-packages|\.py\b"
    r"|/(usr|tmp|home|work|var)/|\b[A-Za-z]+(Error|Exception)\b|<class |object at 0x",
    re.IGNORECASE,
)
# The only answers that the transport itself gives, and so without details.
_OF_TRANSPORT = {"RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNKNOWN", "INVALID_ARGUMENT"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call answered. response: set where it was accepted; error: where the service refused it."""

    code: str
    message: str = ""
    response: Any = None
    error: RichError | None = None
    trailers: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def refusal(self) -> RichError:
        """The error of a call that the service refused."""
        assert self.error is not None, f"not refused: {self.code} {self.response}"
        return self.error

    @property
    def fields(self) -> list[str]:
        """The paths of the fields that are wrong."""
        return list(self.refusal.violations)


class Judge:
    """Calls as one caller; what it sends need not be a message, nor its metadata make sense."""

    def __init__(self, world: World, caller: Client) -> None:
        self.world = world
        self.client = caller
        self._channel = world.channel()

    def send(
        self,
        method: str,
        request: Message | bytes,
        *,
        metadata: Metadata | None = None,
        compression: grpc.Compression | None = None,
    ) -> Answer:
        """Call an RPC by its name, or a full path; checks what is true of every answer.

        metadata: instead of the caller's own. A refused call must leave the tables as they were.
        """
        known = EVERY_METHOD.get(method)
        path = path_of(method) if known else method
        data = request if isinstance(request, bytes) else request.SerializeToString()
        before, began = self.world.counts(), time.monotonic()
        answer = self._call(path, data, self.client.metadata if metadata is None else metadata, compression)
        assert time.monotonic() - began < DEADLINE
        if answer.code != "OK":
            assert self.world.counts() == before, "a refused call wrote something"
        elif known:
            response = GetMessageClass(known.output_type)()
            response.ParseFromString(answer.response)
            return Answer("OK", response=response, trailers=answer.trailers)
        return answer

    def _call(
        self, path: str, data: bytes, metadata: Metadata, compression: grpc.Compression | None
    ) -> Answer:
        function: Any = self._channel.unary_unary(path)
        try:
            response, call = function.with_call(
                data, timeout=DEADLINE, metadata=metadata, compression=compression
            )
        except grpc.RpcError as error:
            return judged(error)
        return Answer("OK", response=response, trailers=_trailers(call))


def judged(error: Any) -> Answer:
    """Return what a call was refused with; AssertionError if it breaks a rule of all answers."""
    code, message = error.code().name, error.details() or ""
    assert code not in {"INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED"}, f"{code} {message}"
    status = rpc_status.from_call(error)
    trailers = _trailers(error)
    shown = [message, str(status), *(str(value) for value in trailers.values())]
    for text in shown:
        # There are fields of that name.
        assert not _LEAK.search(text.replace("error.", "")), f"shows the inside: {text}"
    if status is None:
        assert code in _OF_TRANSPORT, f"{code} without details: {message}"
        return Answer(code, message, trailers=trailers)
    assert code != "UNKNOWN"
    rich = rich_error(error)
    assert len(rich.violations) <= 20
    assert all(len(path) <= 120 and path.isascii() for path in rich.violations)
    if rich.violations:
        assert rich.metadata["field"] == next(iter(rich.violations))
    return Answer(code, message, error=rich, trailers=trailers)


def _trailers(call: Any) -> dict[str, str | bytes]:
    pairs: Sequence[tuple[str, str | bytes]] = call.trailing_metadata() or ()
    assert len({key for key, _ in pairs}) == len(pairs), "a trailer stands twice"
    return dict(pairs)


def path_of(rpc: str) -> str:
    """Return what an RPC is called by on the wire."""
    method = EVERY_METHOD[rpc]
    return f"/{method.containing_service.full_name}/{method.name}"


def message(rpc: str, **fields: Any) -> Message:
    """A request of an RPC with these fields."""
    return GetMessageClass(EVERY_METHOD[rpc].input_type)(**fields)


def varint(number: int) -> bytes:
    """Encode a number as protobuf does; negative ones as 64 bits."""
    number &= 2**64 - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def tagged(number: int, wire_type: int, content: bytes = b"") -> bytes:
    """Encode a field with any wire type: 0 varint, 1 and 5 fixed, 2 with a length before the content."""
    tag = varint(number << 3 | wire_type)
    return tag + varint(len(content)) + content if wire_type == 2 else tag + content
