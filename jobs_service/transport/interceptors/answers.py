"""Answers that clients have not taken yet. gRPC keeps them in memory, and gives no way to take one back."""

from collections import Counter
from typing import Any

import grpc

from jobs_service.model.errors import Overloaded
from jobs_service.transport import call as calls
from jobs_service.transport.interceptors.base import HEALTH, REFLECTION, Context, Handler, Interceptor


class UntakenAnswers:
    """Bytes in all, and of each owner: a connection, or a caller on however many connections.

    limit: bytes of all. No owner may have more than a sixteenth of it and be given another answer.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        # Of those alone that have not taken all.
        self._owners: Counter[str] = Counter()

    def add(self, owners: tuple[str, ...], size: int) -> None:
        """Count an answer that is about to be sent."""
        if not size:
            return
        self._bytes += size
        for owner in owners:
            self._owners[owner] += size

    def remove(self, owners: tuple[str, ...], size: int) -> None:
        """Count an answer, added before, as taken or given up."""
        if not size:
            return
        self._bytes -= size
        for owner in owners:
            self._owners[owner] -= size
            if not self._owners[owner]:
                del self._owners[owner]

    def refusal(self) -> Overloaded | None:
        """Return why nobody is given more, None if there is room."""
        return _refusal(self._limit) if self._bytes >= self._limit else None

    def refusal_of(self, owner: str) -> Overloaded | None:
        """Return why this connection or caller is given no more, None if it may."""
        share = self._limit // 16
        return _refusal(share) if self._owners.get(owner, 0) > share else None


def _refusal(limit: int) -> Overloaded:
    return Overloaded(limit=limit, resource="bytes of answers")


class CallerAnswers(Interceptor):
    """Refuses callers who do not take their answers. Who they are is known inside authentication alone."""

    def __init__(self, untaken: UntakenAnswers) -> None:
        super().__init__()
        self._untaken = untaken

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Look before the request is decoded."""
        # The stubs know only the blocking server.
        behaviour: Any = handler.unary_unary
        if behaviour is None or method.startswith((HEALTH, REFLECTION)):
            return handler

        async def call(request: Any, context: Context) -> Any:
            caller = calls.current().caller
            refusal = self._untaken.refusal_of(caller.soeid) if caller else None
            if refusal is not None:
                raise refusal
            return await behaviour(request, context)

        checked: Handler = grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return checked
