"""The yardstick: gives each message back, with the channel options of the service and nothing else."""

import asyncio
import signal
from typing import Any

import grpc

from jobs_service.transport.interceptors.admission import Bounds
from jobs_service.transport.server import ServerSettings

METHOD = "/bench.Empty/Echo"


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _serve() -> None:
    settings = ServerSettings(
        target="127.0.0.1:0",
        mtls_target=None,
        reflection=False,
        keepalive=60,
        max_connection_age=1800,
        drain_delay=0,
        drain=1,
        streams=100,
        bounds=Bounds(),
    )
    server = grpc.aio.server(options=settings.options())
    echo: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Empty", {"Echo": echo}),))
    print(server.add_insecure_port(settings.target), flush=True)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    asyncio.run(_serve())
