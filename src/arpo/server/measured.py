"""Desktop operations under the clock.

Invariant: every operation is counted and traced once, with how it ended and with its phases; as a part of the trace whose
request began it, however many requests then wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arpo.protocol.problems import Problem
from arpo.server.metrics import ServerMetrics
from arpo.telemetry import names, tracing
from arpo.telemetry.phases import Phases, record

if TYPE_CHECKING:
    from arpo.server.registry import Entry

_SPANS = {"reset": names.ENV_RESET, "step": names.ENV_STEP, "evaluate": names.ENV_EVALUATE}


@dataclass(frozen=True)
class Measurement:
    """An operation, `reset`, `evaluate` or `step <seq>`, that began at `started` (`time.monotonic`), and its phases."""

    operation: str
    started: float
    phases: Phases


async def measured(
    entry: Entry, operation: str, work: Coroutine[None, None, Problem | None], metrics: ServerMetrics
) -> Problem | None:
    """Do a session's work, and measure it; the session shows the measurement from the beginning."""
    kind, _, seq = operation.partition(" ")
    about: dict[names.Attribute, names.Value] = {
        names.SESSION_ID: entry.session.id,
        names.TASK_ID: entry.task_id,
    }
    if entry.slot is not None:
        about[names.DESKTOP] = entry.slot.index
    if seq:
        about[names.SEQ] = int(seq)
    outcome = "cancelled"
    started = time.monotonic()
    with record() as phases:
        entry.measurement = Measurement(operation, started, phases)
        try:
            problem = await work
            outcome = "ok" if problem is None else problem.code.value
        finally:
            seconds = time.monotonic() - started
            metrics.operation_ended(kind, outcome, seconds, phases)
            tracing.finished(
                _SPANS[kind],
                started,
                seconds,
                about | {names.OUTCOME: outcome},
                phases=phases.intervals,
                error=None if outcome in ("ok", "cancelled") else outcome,
            )
    return problem
