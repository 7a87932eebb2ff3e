"""Episodes for the scheduler's tests: they end as the test says, and are made of nothing."""

from __future__ import annotations

from collections.abc import Iterator

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.rollout.groups import Episode
from arpo.tasks.model import Evaluator, Task
from arpo.trajectory import Trajectory, Turn


def a_task(name: str) -> Task:
    return Task(id=name, instruction=name, evaluator=Evaluator(func="infeasible"), domain="test")


def endless(count: int) -> Iterator[Task]:
    """Tasks t0, t1, … again and again."""
    number = 0
    while True:
        yield a_task(f"t{number % count}")
        number += 1


def a_trajectory(
    episode: Episode, *, valid: bool = True, version: int = 0, score: float = 0.0, duration_s: float = 1.0
) -> Trajectory:
    """Of one token, sampled by `version`."""
    turn = Turn(start=0, end=1, text="", actions=[], policy_version=version, observation="0" * 64)
    return Trajectory(
        episode_id=episode.id,
        task_id=episode.task.id,
        domain="test",
        instruction="t",
        group_id=episode.group_id,
        token_ids=[1],
        loss_mask=[True],
        logprobs=[-0.5],
        images=[],
        turns=[turn],
        score=score if valid else None,
        format=0.0,
        problem=None if valid else ProblemError(ProblemCode.DESKTOP_LOST, "gone").problem,
        started_at=0.0,
        duration_s=duration_s,
    )
