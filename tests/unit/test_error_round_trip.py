"""Every error of the core arrives at a client as the status, reason and metadata that it stands for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from jobs_service.model import errors
from jobs_service.model.errors import JobsError, Violation
from jobs_service.transport import errors as statuses
from jobs_service.transport.interceptors.access_log import CORRELATION_ID, AccessLog
from jobs_service.transport.interceptors.errors import Errors
from tests.support.client import RichError, rich_error

METHOD = "/test.Service/Fail"
EXAMPLES: list[JobsError] = [
    errors.CredentialsMissing(),
    errors.CredentialsInvalid("the token has expired"),
    errors.CallerUnknown(user_soeid="zz00001"),
    errors.DatasetPermissionDenied(dataset_id=7, required_permission="write"),
    errors.JobPermissionDenied(job_id="j", required_permission="write"),
    errors.RoleRequired(required_role="service"),
    errors.JobNotFound(job_id="j"),
    errors.DatasetNotFound(dataset_id=7),
    errors.UserNotFound(user_soeid="zz00001"),
    errors.InvalidRequest([Violation("priority", "is wrong", 100), Violation("run_type", "is wrong")]),
    errors.InvalidPageToken([Violation("page_token", "is wrong")]),
    errors.PayloadTooLarge([Violation("run_parameters", "is too large", 5)]),
    errors.RequestIdConflict(request_id="r", job_id="j"),
    errors.JobNotCancellable(job_id="j", status="CANCELLED", cancelled_by="zz00001"),
    errors.JobNotRetryable(job_id="j", status="RUNNING"),
    errors.DependencyNotFound(job_id="j"),
    errors.DependencyNotSatisfiable(job_id="j", status="FAILED"),
    errors.LeaseLost(job_id="j", status="RUNNING", attempt=2),
    errors.TooManyWaiters(limit=3),
    errors.Overloaded(limit=3, resource="calls"),
    errors.ShuttingDown(),
    errors.RowLocked(),
    errors.DatabaseUnavailable(),
    errors.TransactionRolledBack(),
    errors.DeadlineExceeded(),
    errors.InternalError(correlation_id="c"),
]
Behaviour = Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]


async def _answer(behaviour: Behaviour, timeout: float = 10) -> grpc.aio.AioRpcError:
    server = grpc.aio.server(interceptors=[AccessLog(), Errors()])
    handler: Any = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Fail": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            fail: Any = channel.unary_unary(METHOD)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fail(b"", timeout=timeout)
            return caught.value
    finally:
        await server.stop(0)


def _answered(behaviour: Behaviour) -> RichError:
    return rich_error(_Call(asyncio.run(_answer(behaviour))))


class _Call:
    """An AioRpcError with the methods under which grpc_status looks for a status."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.details = error.code, error.details
        self.trailing_metadata = lambda: tuple(error.trailing_metadata())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_what_it_is(error: JobsError) -> None:
    async def fail(_request: bytes, _context: object) -> bytes:
        raise error

    arrived = _answered(fail)
    assert arrived.code == statuses.code_of(error).name
    assert arrived.reason == statuses.reason_of(error)
    assert arrived.metadata == error.metadata
    assert arrived.message == str(error)


def test_there_is_an_example_of_every_error() -> None:
    assert {type(error) for error in EXAMPLES} == set(statuses.STATUS)


def test_an_unexpected_error_says_nothing_but_its_correlation_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_request: bytes, _context: object) -> bytes:
        raise KeyError("secret")

    arrived = _answered(fail)
    assert (arrived.code, arrived.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(arrived)
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.fields["correlation_id"] for record in logged] == [arrived.metadata["correlation_id"]]  # type: ignore[attr-defined] # put there by extra


def test_a_cancellation_from_inside_does_not_leave_the_client_waiting() -> None:
    async def fail(_request: bytes, _context: object) -> bytes:
        shared: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        shared.cancel()
        return await shared

    assert _answered(fail).code == "UNAVAILABLE"


def test_the_details_stay_small_whatever_is_wrong() -> None:
    violations = [Violation("f" * 120, "d" * 400) for _ in range(20)]

    async def fail(_request: bytes, _context: object) -> bytes:
        raise errors.InvalidRequest(violations)

    arrived = _answered(fail)
    assert arrived.code == "INVALID_ARGUMENT"


def test_the_correlation_id_comes_back_with_an_error() -> None:
    async def fail(_request: bytes, _context: object) -> bytes:
        raise errors.ShuttingDown

    trailers = asyncio.run(_answer(fail)).trailing_metadata()
    assert CORRELATION_ID in [key for key, _ in trailers]
