"""Logs: one JSON object a line, on stderr."""

import logging
import sys
from datetime import UTC, datetime

import orjson


class JsonLines(logging.Formatter):
    """Makes a JSON object of a record: time, level, logger, message, and what `fields` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure_logging(level: str) -> None:
    """Send every log to stderr as JSON lines, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_of_us)
    # Says on every migration which kind of database it talks to.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


def _tells_of_us(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC is about the service: not what a caller alone has caused, at will.

    It quotes a header that is no ASCII whole, a token perhaps, and has a traceback for each answer whose
    caller is gone.
    """
    return not str(record.msg).startswith(("Invalid encoding on", "ExecuteBatchError raised in core"))
