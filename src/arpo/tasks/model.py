"""One OSWorld task: what the JSON holds, and what an evaluator's loose shapes mean.

Invariant: `Task.wire()` gives back the JSON document that was read, key for key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from arpo.tasks.limits import MAX_INSTRUCTION, MAX_NAME, MAX_STEPS

INFEASIBLE = "infeasible"
"""The evaluator of tasks that cannot be done: 1 only if the agent's last action says so."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that do not print; give one line of plain text")
    return text


class SetupStep(BaseModel):
    """One entry of a task's `config` (or of the evaluator's `postconfig`)."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(max_length=MAX_NAME)
    parameters: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One metric of an evaluator with its getters' configurations, as OSWorld pairs them.

    result, expected: a getter's configuration (`{"type": ..., ...}`); None when the metric takes none.
    options: keyword arguments of the metric.
    """

    func: str
    result: dict[str, Any] | None
    expected: dict[str, Any] | None
    options: dict[str, Any]


class Evaluator(BaseModel):
    """How a task is scored: OSWorld's metric name(s) over getters' results.

    With a list of metrics, `result`, `expected` and `options` are lists as long; `terms` pairs them.
    """

    model_config = ConfigDict(extra="allow")

    func: str | list[str]
    result: dict[str, Any] | list[dict[str, Any] | None] | None = None
    expected: dict[str, Any] | list[dict[str, Any] | None] | None = None
    options: dict[str, Any] | list[dict[str, Any] | None] | None = None
    conj: Literal["and", "or"] = "and"
    postconfig: list[SetupStep] = Field(default_factory=list, max_length=MAX_STEPS)

    @property
    def infeasible(self) -> bool:
        """Whether the task is one that cannot be done."""
        return self.func == INFEASIBLE

    def terms(self) -> tuple[Term, ...]:
        """The metrics with what belongs to each; empty for an infeasible task.

        Raises ValueError `<field>: <reason>` when a list does not match the list of metrics.
        """
        if self.infeasible:
            return ()
        funcs = [self.func] if isinstance(self.func, str) else self.func
        if not funcs:
            raise ValueError("func: an empty list scores nothing")
        columns = {name: self._column(name, len(funcs)) for name in ("result", "expected", "options")}
        return tuple(
            Term(func, result or None, expected or None, options or {})
            for func, result, expected, options in zip(funcs, *columns.values(), strict=True)
        )

    def _column(self, name: str, length: int) -> list[dict[str, Any] | None]:
        value: dict[str, Any] | list[dict[str, Any] | None] | None = getattr(self, name)
        if not value:
            return [None] * length
        match self.func, value:
            case str(), dict():
                return [value]
            case list(), list() if len(value) == length:
                return value
            case list(), list():
                raise ValueError(f"{name}: {len(value)} entries, but func has {length}")
            case str(), _:
                raise ValueError(f"{name}: a list, but func is one name; give an object")
        raise ValueError(f"{name}: one object, but func is a list of {length}; give a list of {length}")


class Task(BaseModel):
    """An OSWorld task JSON. Unknown top-level keys are kept: upstream adds some now and then."""

    model_config = ConfigDict(extra="allow")

    id: Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_one_line)]
    instruction: str = Field(min_length=1, max_length=MAX_INSTRUCTION)
    config: list[SetupStep] = Field(default_factory=list, max_length=MAX_STEPS)
    evaluator: Evaluator
    snapshot: str | None = None
    related_apps: list[str] = Field(default_factory=list)

    # where it came from; not part of the JSON
    domain: str = Field(default="", exclude=True)
    path: Path | None = Field(default=None, exclude=True)

    def wire(self) -> dict[str, Any]:
        """The task as sent to an env-server."""
        return self.model_dump(mode="json", exclude_unset=True)
