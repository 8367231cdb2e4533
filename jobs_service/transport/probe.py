"""Asks a running service for its health, for container and shell checks."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def ask_health(target: str, service: str, *, seconds: float) -> str:
    """Return SERVING, NOT_SERVING or SERVICE_UNKNOWN, or the status code's name if there is no answer."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.RpcError as error:
            return str(error.code().name) if isinstance(error, grpc.Call) else "UNKNOWN"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
