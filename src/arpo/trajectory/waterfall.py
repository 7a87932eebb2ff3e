"""An episode as a waterfall: what it waited for, one below the other, each where it lies in time. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from arpo.protocol.actions import Action
from arpo.trajectory.operation import Operation
from arpo.trajectory.record import Trajectory


@dataclass(frozen=True)
class Bar:
    """A line. depth: 0 for the episode, 1 for an operation, 2 for a phase of it. note: what a person should know of it."""

    depth: int
    name: str
    start_s: float
    seconds: float
    note: str = ""
    failed: bool = False


def waterfall(trajectory: Trajectory) -> list[Bar]:
    """The lines of an episode, in the order in which things began."""
    problem = trajectory.problem.code.value if trajectory.problem else ""
    bars = [Bar(0, "episode", 0.0, trajectory.duration_s, problem, bool(problem))]
    for operation in sorted(trajectory.operations, key=lambda one: one.start_s):
        note = str(operation.problem or _note(operation, trajectory))
        bars.append(
            Bar(1, operation.name, operation.start_s, operation.seconds, note, operation.problem is not None)
        )
        bars += [Bar(2, name, start, seconds) for name, start, seconds in operation.phases]
    return bars


def shares(trajectory: Trajectory) -> dict[str, float]:
    """Seconds by operation, and of what is none as `other`."""
    spent: dict[str, float] = {}
    for operation in trajectory.operations:
        spent[operation.name] = spent.get(operation.name, 0.0) + operation.seconds
    return {**spent, "other": max(0.0, trajectory.duration_s - sum(spent.values()))}


def _note(operation: Operation, trajectory: Trajectory) -> str:
    if operation.name == "evaluate":
        return f"score {trajectory.score:g}" if trajectory.score is not None else ""
    if operation.turn is None or operation.turn >= len(trajectory.turns):
        return ""
    turn = trajectory.turns[operation.turn]
    if operation.name == "generate":
        sampled = f", {turn.end - turn.start} tokens" if turn.end > turn.start else ""
        return f"turn {operation.turn}{sampled}" + (", no action" if turn.format_error else "")
    return ", ".join(_said(action) for action in turn.actions)


def _said(action: Action) -> str:
    """An action in a few words; of a text only how long it is."""
    values = action.model_dump(exclude={"kind"}, exclude_defaults=True)
    words = [f"{len(value)} characters" if name == "text" else _word(value) for name, value in values.items()]
    return " ".join([action.kind, *words])


def _word(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
