"""Asks a running service for its health, for container and shell checks."""

from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobs_service.transport.certificates import parse_certificates
from jobs_service.transport.tokens import read_file


def ask_health(target: str, service: str, *, cert_file: Path | None = None, seconds: float) -> str:
    """Return SERVING, NOT_SERVING or SERVICE_UNKNOWN, or the status code's name if there is no answer.

    cert_file: the service's certificate, where it speaks TLS. Raises UnusableKey.
    """
    with _channel(target, cert_file) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.RpcError as error:
            return str(error.code().name) if isinstance(error, grpc.Call) else "UNKNOWN"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(target: str, cert_file: Path | None) -> grpc.Channel:
    if cert_file is None:
        return grpc.insecure_channel(target)
    # This very certificate is what is trusted, whoever issued it, and under a name of its own.
    chain = read_file(cert_file)
    name = own_name(parse_certificates(cert_file, chain)[0])
    return grpc.secure_channel(
        target, grpc.ssl_channel_credentials(chain), options=[("grpc.ssl_target_name_override", name)]
    )


def own_name(certificate: x509.Certificate) -> str:
    """Return a name that a certificate is good for; a wildcard with something in its place."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    addresses = names.get_values_for_type(x509.IPAddress)
    candidates = [*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)]
    candidates += [
        str(attribute.value)
        for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    ]
    return candidates[0].replace("*", "health") if candidates else "localhost"
