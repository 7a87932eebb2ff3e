"""The operations of one episode under the clock: in its record, as spans of its trace, and as metrics.

Invariant: every operation that began is in the record once, however it ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.rollout.engines.base import EngineError
from arpo.telemetry import metrics, names, phases, tracing
from arpo.telemetry.tracing import Given, Span
from arpo.trajectory.operation import Operation, OperationName

_SPANS = {"reset": names.RESET, "generate": names.GENERATE, "step": names.STEP, "evaluate": names.EVALUATE}


class Operations:
    """What an episode that begins now waits for.

    timings: seconds by name. done: the operations that have ended, in that order.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.timings: dict[str, float] = defaultdict(float)
        self.done: list[Operation] = []

    @contextmanager
    def of(self, name: OperationName, turn: int | None = None, about: Given | None = None) -> Iterator[Span]:
        """Measure what is awaited inside. about: attributes of its span."""
        start = time.monotonic()
        problem: ProblemCode | None = None
        cancelled = False
        given = {**({} if turn is None else {names.TURN: turn}), **(about or {})}
        with phases.record() as taken, tracing.span(_SPANS[name], given) as span:
            try:
                yield span
            except ProblemError as error:
                problem = error.code
                span.fail(error.code.value, error.fault.value)
                raise
            except EngineError:
                problem = ProblemCode.INTERNAL
                raise
            except asyncio.CancelledError:
                cancelled = True
                raise
            finally:
                seconds = time.monotonic() - start
                self.timings[name] += seconds
                ended = Operation(
                    name=name,
                    start_s=_rounded(start - self._began),
                    seconds=_rounded(seconds),
                    turn=turn,
                    problem="cancelled" if cancelled else problem,
                    phases=tuple(
                        (one.name, _rounded(one.start - self._began), _rounded(one.seconds))
                        for one in sorted(taken.intervals, key=lambda one: one.start)
                    ),
                )
                self.done.append(ended)
                labels = {names.OPERATION: name, names.OUTCOME: ended.problem or "ok"}
                metrics.record(names.EPISODE_OPERATION, seconds, labels)


def _rounded(seconds: float) -> float:
    return round(seconds, 5)
