"""Server reflection, v1 and v1alpha, for grpcurl and buf curl.

grpcio-reflection has v1alpha only. v1 is the same on the wire, so the servicer serves both names; the
description of v1 is that of v1alpha with the package renamed.
"""

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

_ALPHA = "grpc.reflection.v1alpha"
_STABLE = "grpc.reflection.v1"
NAMES = (f"{_ALPHA}.ServerReflection", f"{_STABLE}.ServerReflection")


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let the server describe these services and itself."""
    servicer = ReflectionServicer((*services, *NAMES), pool=_pool_with_v1())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        server.add_generic_rpc_handlers((handler,))


def _pool_with_v1() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(NAMES[1])
    except KeyError:
        pool.AddSerializedFile(_described_as_v1().SerializeToString())
    return pool


def _described_as_v1() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _STABLE
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(_ALPHA, _STABLE)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_ALPHA, _STABLE)
        method.output_type = method.output_type.replace(_ALPHA, _STABLE)
    return file
