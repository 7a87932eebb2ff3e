"""What a run directory says of what was learned from, checked against itself: everything is counted again from the
trajectories, by none of the code that counted it in the run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from runs import lines

from arpo.trajectory import Trajectory


@dataclass
class Records:
    """metrics, batches, faults: the lines of the files of these names. kept: the trajectories that were not abandoned."""

    metrics: list[dict[str, Any]]
    batches: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    kept: list[Trajectory]
    abandoned: list[Trajectory]

    @classmethod
    def of(cls, run: Path) -> Records:
        """Those of a run directory; trajectories of the warm start are left out."""
        files = sorted((run / "trajectories").glob("step-*.jsonl"))
        aside = [path for path in files if ".abandoned-" in path.name]
        read = {
            path: [Trajectory.model_validate(line) for line in lines(path)]
            for path in files
            if "step-000000" not in path.name
        }
        return cls(
            metrics=lines(run / "metrics.jsonl"),
            batches=lines(run / "batches.jsonl"),
            faults=[row for row in lines(run / "faults.jsonl") if row["episode_id"].startswith("train/")],
            kept=[t for path, found in read.items() if path not in aside for t in found],
            abandoned=[t for path, found in read.items() if path in aside for t in found],
        )

    @property
    def learned(self) -> list[str]:
        """Ids of all fresh episodes that a step learned from, of all steps."""
        return [name for batch in self.batches for group in batch["groups"] for name in group["episodes"]]

    def valid(self) -> dict[str, Trajectory]:
        """The kept ones that ended with a score, by id; fails when two have one id."""
        ids = Counter(t.episode_id for t in self.kept if t.problem is None)
        assert not [name for name, times in ids.items() if times > 1]
        return {t.episode_id: t for t in self.kept if t.problem is None}

    def assert_sound(self, *, steps: int, groups: int, size: int, staleness: int) -> None:
        """Every step once, of whole groups that are in no other; every episode is recorded, scored and young enough."""
        assert [row["step"] for row in self.metrics] == list(range(1, steps + 1))
        assert [batch["step"] for batch in self.batches] == list(range(1, steps + 1))
        valid = self.valid()
        assert len(set(self.learned)) == len(self.learned)
        for trajectory in valid.values():
            assert trajectory.score in (0.0, 1.0)
            assert trajectory.timings["evaluate"] > 0, "nobody has evaluated it"
        for trajectory in [*self.kept, *self.abandoned]:
            assert (trajectory.problem is None) == (trajectory.score is not None)
        assert all(t.problem is not None for t in self.kept if t.episode_id not in valid)
        seen: list[str] = []
        for row, batch in zip(self.metrics, self.batches, strict=True):
            fresh, replayed = [], []
            for group in batch["groups"]:
                group_ids = {name.rpartition("/")[0] for name in group["episodes"]}
                assert len(group_ids) == 1, "an episode is in the group of another task"
                assert len(group["episodes"]) + len(group["replayed"]) <= size
                seen += group_ids
                fresh += [valid[name] for name in group["episodes"]]
                replayed += [valid[name] for name in group["replayed"]]
            assert all(t.score == 1.0 for t in replayed)
            places = len(fresh) + len(replayed)
            assert row["rollout/valid"] == places
            assert places + row["rollout/lost"] == groups * size
            if not replayed:  # else one of the batch was put aside for it
                assert row["rollout/score"] == pytest.approx(fmean(t.score for t in fresh))
                assert row["rollout/reward"] == pytest.approx(fmean(t.score + 0.5 * t.format for t in fresh))
            ages = [row["policy_version"] - 1 - version for t in fresh for version in sampled_by(t)]
            assert 0 <= min(ages) <= max(ages) <= staleness
            assert row["rollout/staleness_max"] <= staleness
        assert len(set(seen)) == len(seen), "a group was learned from twice"


def sampled_by(trajectory: Trajectory) -> list[int]:
    """The policy versions that sampled an episode, by turn and by what was pushed amid it."""
    return [v for turn in trajectory.turns for v in (turn.policy_version, *(new for _, new in turn.pushes))]


def number_and_task(episode_id: str) -> tuple[int, str]:
    """Of an episode's group."""
    number, _, task = episode_id.split("/")[1].partition("-")
    return int(number), task
