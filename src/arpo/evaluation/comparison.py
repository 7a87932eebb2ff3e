"""How two evaluations differ, task by task: the same policy on clean and noisy tasks, or two policies on the same tasks.

Invariant: only tasks with a valid episode on both sides are compared; a task of one side alone is named and never counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from arpo.evaluation.result import EvaluationResult
from arpo.evaluation.statistics import Estimate, mean_difference


class TaskDifference(BaseModel):
    """A task's mean score on both sides. difference: second minus first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domain: str
    task_id: str
    first: float
    second: float
    difference: float


@dataclass(frozen=True)
class Means:
    """Mean success of some paired tasks on both sides, and the mean difference with its interval."""

    first: float
    second: float
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """all: None when no task is on both sides. only_first, only_second: `domain/id` of tasks that have no counterpart."""

    tasks: list[TaskDifference]
    all: Means | None
    domains: dict[str, Means]
    only_first: list[str]
    only_second: list[str]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "all": _record(self.all) if self.all else None,
            "domains": {domain: _record(means) for domain, means in self.domains.items()},
            "tasks": [task.model_dump() for task in self.tasks],
            "only_first": self.only_first,
            "only_second": self.only_second,
        }


def compare(first: EvaluationResult, second: EvaluationResult) -> Comparison:
    """Pair the tasks by domain and id."""
    ours, theirs = _successes(first), _successes(second)
    tasks = [
        TaskDifference(domain=domain, task_id=task_id, first=mean, second=other, difference=other - mean)
        for (domain, task_id), mean in sorted(ours.items())
        if (other := theirs.get((domain, task_id))) is not None
    ]
    domains: dict[str, list[TaskDifference]] = {}
    for task in tasks:
        domains.setdefault(task.domain, []).append(task)
    return Comparison(
        tasks=tasks,
        all=_means(tasks) if tasks else None,
        domains={domain: _means(paired) for domain, paired in domains.items()},
        only_first=["/".join(key) for key in sorted(ours.keys() - theirs.keys())],
        only_second=["/".join(key) for key in sorted(theirs.keys() - ours.keys())],
    )


def _successes(result: EvaluationResult) -> dict[tuple[str, str], float]:
    return {(t.domain, t.task_id): t.success for t in result.tasks if t.success is not None}


def _means(tasks: list[TaskDifference]) -> Means:
    difference = mean_difference([task.difference for task in tasks])
    assert difference is not None  # noqa: S101 - there is a task
    return Means(
        first=sum(task.first for task in tasks) / len(tasks),
        second=sum(task.second for task in tasks) / len(tasks),
        difference=difference,
    )


def _record(means: Means) -> dict[str, Any]:
    return {"first": means.first, "second": means.second, "difference": means.difference.model_dump()}
