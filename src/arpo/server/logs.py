"""What the env-server logs to stderr.

Invariant: no level logs a token, not even one that somebody wrote into a URL.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

from arpo.telemetry.logs import add_trace_id


class LogLevel(StrEnum):
    """What is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def configure_logging(level: LogLevel) -> None:
    """Log to stderr from this level on, with the trace that a line belongs to; `debug` logs every request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(trace)s"))
    handler.addFilter(add_trace_id)
    logging.basicConfig(level=level.value.upper(), handlers=[handler])
    if level is not LogLevel.debug:
        # Every screenshot is a request of the guest's client; uvicorn says nothing that is not said here.
        for chatty in ("httpx", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and len(record.args) == 5:  # client, method, path, version, status
        client, method, path, version, status = record.args
        record.args = (client, method, str(path).partition("?")[0], version, status)
    return True
