"""One line for each call, refusals included: who called what, how it ended, how long it took."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobs_service.transport import call as calls
from jobs_service.transport.call import Call
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, CallInterceptor, Context

CORRELATION_ID = "x-correlation-id"

_log = logging.getLogger("jobs_service.access")
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")


class AccessLog(CallInterceptor):
    """Begins each call with its correlation id, taken from the metadata or made, and logs its end."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Log the call when it has ended, however it ends."""
        call = Call(method)
        given = [value for key, value in context.invocation_metadata() or () if key == CORRELATION_ID]
        # What is no plain id would be a way to write into our logs.
        if len(given) == 1 and isinstance(given[0], str) and _PLAIN_ID.match(given[0]):
            call.correlation_id = given[0]
        calls.begin(call)
        context.set_trailing_metadata(((CORRELATION_ID, call.correlation_id),))
        began = time.perf_counter()
        try:
            # In front for those who log headers, in the trailers for refusals that have nothing else.
            await context.send_initial_metadata(((CORRELATION_ID, call.correlation_id),))
            yield
        except asyncio.CancelledError:
            # Whoever waited is gone; a deadline that passed on the client's side looks the same.
            call.code = "CANCELLED"
            raise
        finally:
            _write(call, context, (time.perf_counter() - began) * 1000)


def _write(call: Call, context: Context, milliseconds: float) -> None:
    routine = call.method.startswith((HEALTH, REFLECTION)) and call.code in {"OK", "CANCELLED"}
    level = logging.DEBUG if routine else logging.INFO
    if not _log.isEnabledFor(level):
        return
    on_behalf_of = call.caller.on_behalf_of if call.caller else None
    fields = {
        "method": call.method,
        "caller": call.caller.soeid if call.caller else None,
        "on_behalf_of": on_behalf_of.soeid if on_behalf_of else None,
        "code": call.code,
        "reason": call.reason or None,
        "duration_ms": round(milliseconds, 3),
        "correlation_id": call.correlation_id,
        "peer": context.peer(),
    }
    if call.detail:
        fields["detail"] = call.detail
    _log.log(level, "call", extra={"fields": fields})
