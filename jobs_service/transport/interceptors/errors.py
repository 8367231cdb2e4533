"""Every way a call can fail, made a status that says what the caller may know."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from jobs_service.model.errors import InternalError, JobsError, ShuttingDown
from jobs_service.transport import call as calls
from jobs_service.transport.errors import code_of, details, message_of, reason_of
from jobs_service.transport.interceptors.access_log import CORRELATION_ID
from jobs_service.transport.interceptors.base import CallInterceptor, Context

_log = logging.getLogger(__name__)


class Errors(CallInterceptor):
    """Aborts a call with the status of its error; what nobody expected is INTERNAL and in the log."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Turn whatever is raised into a status."""
        try:
            yield
        except JobsError as error:
            await _abort(context, error)
        except grpc.aio.AbortError:
            # The health and reflection servicers of grpcio abort by themselves.
            calls.current().code = _name(context.code())
            raise
        except asyncio.CancelledError:
            # The call's own cancellation goes on. One that came from inside (a future that was shared
            # and cancelled) would leave the client waiting for ever.
            if context.cancelled() or _task_is_cancelled():
                raise
            await _abort(context, ShuttingDown())
        except grpc.aio.InternalError:
            # What was being sent can't be: the caller is gone, and grpc took no notice of it yet.
            raise asyncio.CancelledError from None
        except Exception:
            call = calls.current()
            _log.exception(
                "a call failed unexpectedly",
                extra={"fields": {"method": method, "correlation_id": call.correlation_id}},
            )
            await _abort(context, InternalError(correlation_id=call.correlation_id))


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _name(code: object) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else str(code)


async def _abort(context: Context, error: JobsError) -> None:
    call = calls.current()
    call.code, call.reason, call.detail = code_of(error).name, reason_of(error), error.detail
    trailers = ((CORRELATION_ID, call.correlation_id), *details(error))
    await context.abort(code_of(error), message_of(error), trailers)
