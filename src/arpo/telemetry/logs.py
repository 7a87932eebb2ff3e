"""The trace id in log lines."""

from __future__ import annotations

import logging

from arpo.telemetry import tracing


def suffix() -> str:
    """` trace_id=<32 digits>` while the present work belongs to a trace, else nothing."""
    trace_id = tracing.trace_id()
    return f" trace_id={trace_id}" if trace_id else ""


def in_plain_lines() -> None:
    """Where nobody has configured logging, warnings are lines on stderr: let them name their trace, too."""
    if logging.lastResort is not None:
        logging.lastResort.addFilter(add_trace_id)
        logging.lastResort.setFormatter(logging.Formatter("%(message)s%(trace)s"))


def add_trace_id(record: logging.LogRecord) -> bool:
    """A filter for a handler whose format ends in `%(trace)s`; lets every line through."""
    record.trace = suffix()
    return True
