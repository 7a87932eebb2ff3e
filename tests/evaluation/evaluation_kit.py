"""What an evaluation's record needs besides episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollout_kit import task

from arpo.config.load import load_config
from arpo.evaluation.identity import Identity
from arpo.evaluation.record import EvaluationRecord, open_record
from arpo.protocol.actions import Click, Finished
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.trajectory import Trajectory, Turn
from arpo.trajectory.store import ScreenshotStore

BROKEN = ProblemError(ProblemCode.EVALUATOR_FAILED, "broken")


def identity(*names: str, policy: str = "p", **overrides: Any) -> Identity:
    config = load_config(None, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])
    tasks = [task(name) for name in names or ("a", "b")]
    return Identity.of(config, tasks, label="mine", step=2, policy=policy, policy_version=7)


def record(folder: Path, *names: str, repeats: int = 1, **changes: Any) -> EvaluationRecord:
    return open_record(
        folder / "mine", identity(*names, **changes), repeats, ScreenshotStore(folder / "screenshots")
    )


def episode(
    store: ScreenshotStore, number: int, name: str, *, place: int = 0, score: float | None = 1.0
) -> Trajectory:
    """Two turns; broken when it has no score."""
    group = f"eval-mine/{number:06d}-{name}"
    first, second, last = (store.put(f"picture {i}".encode()) for i in range(3))
    turns = [
        Turn(
            start=1, end=2, text="Action: click", actions=[Click(x=1, y=2)], policy_version=7, observation=first,
            started_at=1_700_000_000.0,
        ),
        Turn(
            start=3, end=4, text="Action: finished", actions=[Finished()], policy_version=7, observation=second,
            started_at=1_700_000_001.0,
        ),
    ]  # fmt: skip
    return Trajectory(
        episode_id=f"{group}/{place}", task_id=name, domain="test", instruction="do it", group_id=group,
        token_ids=[1, 2, 3, 4], loss_mask=[False, True, False, True], logprobs=[0.0, -1.0, 0.0, -1.0], images=[],
        turns=turns, score=score, format=0.0, final_observation=None if score is None else last,
        problem=BROKEN.problem if score is None else None, started_at=0.0, duration_s=1.0,
    )  # fmt: skip
