"""When messages are decoded."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from jobs_service.model.errors import InvalidRequest
from jobs_service.transport.interceptors.decoding import Decoding


def test_a_message_is_decoded_when_the_behaviour_is_called_and_not_when_it_is_received() -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> bytes:
        decoded.append(data)
        return data

    wrapped: Any = Decoding().wrap("/a/B", _echo(decode))
    request = wrapped.request_deserializer(b"abc")
    assert decoded == []
    assert asyncio.run(wrapped.unary_unary(request, None)) == b"abc"


@pytest.mark.parametrize("data", [b"\xff", None], ids=["no message of this type", "no message at all"])
def test_what_is_no_message_is_a_bad_request(data: bytes | None) -> None:
    wrapped: Any = Decoding().wrap("/a/B", _echo(Struct.FromString))
    request = None if data is None else wrapped.request_deserializer(data)
    with pytest.raises(InvalidRequest):
        asyncio.run(wrapped.unary_unary(request, None))


def _echo(decode: Any) -> Any:
    async def echo(request: Any, _: Any) -> Any:
        return request

    return grpc.unary_unary_rpc_method_handler(echo, request_deserializer=decode)
