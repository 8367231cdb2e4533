"""What other parts of the process want to know at once: told after the commit, never before."""

import logging
from collections.abc import Callable, Collection
from typing import Generic, TypeVar
from uuid import UUID

from jobs_service.model.job import RunType
from jobs_service.model.news import News as Happened

News = TypeVar("News")

_log = logging.getLogger(__name__)


class Signal(Generic[News]):
    """Passes news on to those who subscribed. Told from any thread; news that get lost cost a poll."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Collection[News]], None]] = []

    def subscribe(self, listener: Callable[[Collection[News]], None]) -> None:
        """Call it with what is told from now on. It must return at once, on whatever thread."""
        self._listeners.append(listener)

    def tell(self, news: Collection[News]) -> None:
        """Tell everybody. Raises nothing: what was committed stays so, whoever could not be told."""
        for listener in self._listeners if news else ():
            try:
                listener(news)
            except Exception:
                _log.exception("news could not be passed on")


class Signals:
    """ready: run types of which there may be jobs to claim. revoked: jobs taken from their workers."""

    def __init__(self) -> None:
        self.ready = Signal[RunType]()
        self.revoked = Signal[UUID]()

    def tell(self, happened: Happened) -> None:
        """Tell everybody what a transaction did that is committed now."""
        self.ready.tell(happened.ready)
        self.revoked.tell(happened.revoked)
