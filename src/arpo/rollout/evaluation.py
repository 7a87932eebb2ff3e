"""Evaluation: every task of a set, k times, with faults kept apart from failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from arpo.rollout.collect import Collector
from arpo.rollout.scheduler import Scheduler
from arpo.tasks.model import Task
from arpo.trajectory import Trajectory


class TaskResult(BaseModel):
    """One task's scores; `lost` counts episodes that no retry could save from environment faults."""

    model_config = ConfigDict(extra="forbid")

    task_id: str
    domain: str
    scores: list[float]
    lost: int


class EvaluationResult(BaseModel):
    """Scores of a task set under one policy version."""

    model_config = ConfigDict(extra="forbid")

    policy_version: int
    tasks: list[TaskResult]
    faults: dict[str, int]
    """Invalid episodes by problem code."""

    @property
    def success(self) -> float | None:
        """Mean score over all valid episodes; None when there is none."""
        scores = [score for task in self.tasks for score in task.scores]
        return fmean(scores) if scores else None

    @property
    def episodes(self) -> int:
        """Valid episodes."""
        return sum(len(task.scores) for task in self.tasks)

    def by_domain(self) -> dict[str, tuple[float, int]]:
        """Mean score and number of valid episodes of each domain."""
        scores: dict[str, list[float]] = {}
        for task in self.tasks:
            scores.setdefault(task.domain, []).extend(task.scores)
        return {domain: (fmean(values), len(values)) for domain, values in sorted(scores.items()) if values}

    def record(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {"success": self.success, "episodes": self.episodes, **self.model_dump(mode="json")}


async def evaluate(
    collector: Collector, tasks: Sequence[Task], *, label: str, repeats: int, max_retries: int, seed: int
) -> EvaluationResult:
    """Run every task `repeats` times with the collector's engine and rules."""
    faults: Counter[str] = Counter()

    def count(trajectory: Trajectory) -> None:
        if trajectory.problem is not None:
            faults[trajectory.problem.code.value] += 1
        collector.on_trajectory(trajectory)

    scheduler = Scheduler.of_set(tasks, label=label, group_size=repeats, max_retries=max_retries, seed=seed)
    groups = await replace(collector, on_trajectory=count).collect(scheduler)
    return EvaluationResult(
        policy_version=collector.engine.policy_version,
        tasks=[
            TaskResult(
                task_id=group.task.id,
                domain=group.task.domain,
                scores=[t.score for t in group.trajectories if t.score is not None],
                lost=group.lost,
            )
            for group in groups
        ],
        faults=dict(faults),
    )
