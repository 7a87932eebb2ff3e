"""Small trajectories, groups and buffers for the tests of the replay side."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arpo.checkpoints.manifest import seal
from arpo.config.sections import ReplaySection
from arpo.protocol.actions import Click, Finished
from arpo.protocol.problems import Problem
from arpo.replay import ReplayBuffer, ReplayFolder
from arpo.trajectory import GroupMember, ImageRef, Trajectory, Turn
from arpo.trajectory.store import ScreenshotStore

TOKENIZER = "f" * 64


def picture(name: str) -> bytes:
    return f"picture {name}".encode()


def sha(name: str) -> str:
    return hashlib.sha256(picture(name)).hexdigest()


def trajectory(
    score: float | None,
    name: str = "t",
    task: str = "task",
    version: int = 0,
    shown: str = "p",
    problem: Problem | None = None,
    **changes: Any,
) -> Trajectory:
    values: dict[str, Any] = {
        "episode_id": name,
        "task_id": task,
        "domain": "d",
        "instruction": "press [it]",
        "group_id": "g",
        "token_ids": [1, 2, 3, 4, 5],
        "loss_mask": [False, True, False, True, True],
        "logprobs": [0.0, -0.25, 0.0, -0.1, -1 / 3],
        "images": [ImageRef(sha256=sha(shown), width=1, height=1, tokens=1)],
        "turns": [
            Turn(
                start=1,
                end=2,
                text="x",
                actions=[Click(x=1, y=2)],
                policy_version=version,
                observation=sha(shown),
            ),
            Turn(
                start=3,
                end=5,
                text="y",
                actions=[Finished()],
                policy_version=version + 1,
                observation=sha(shown),
            ),
        ],
        "score": score,
        "format": 0.0,
        "final_observation": sha("last"),
        "problem": problem,
        "started_at": 100.0,
        "duration_s": 1.5,
    }
    return Trajectory(**values | changes)


def group(scores: Sequence[float], **options: Any) -> list[Trajectory]:
    return [trajectory(score, name=f"fresh-{n}", **options) for n, score in enumerate(scores)]


def replayed(members: Sequence[GroupMember]) -> list[int]:
    return [index for index, member in enumerate(members) if member.replayed]


def close(buffer: ReplayBuffer, scores: Sequence[float], seed: int = 0, **options: Any) -> list[GroupMember]:
    return buffer.close_group(group(scores, **options), random.Random(seed))


class Run:
    """The replay side of a run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = ReplayFolder(root / "replay")
        self.screenshots = ScreenshotStore(root / "screenshots")
        self.checkpoints = root / "checkpoints"

    def buffer(self, *names: str, **section: Any) -> ReplayBuffer:
        """A buffer with successes of these episode names."""
        buffer = ReplayBuffer(ReplaySection(**section), self.folder.rows)
        for name in names:
            buffer.close_group([trajectory(1.0, name)], random.Random(0))
        return buffer

    def publish(self, buffer: ReplayBuffer, step: int) -> Path:
        """A complete checkpoint that holds only the buffer, whose pictures are kept, too."""
        for entry in buffer.stored:
            for wanted in ("p", "a", "b", "last"):
                if sha(wanted) in {*entry.images, sha("last")}:
                    self.screenshots.put(picture(wanted))
        self.folder.record_tokenizer(TOKENIZER)
        checkpoint = self.checkpoints / f"step-{step:06d}"
        (checkpoint / "replay").mkdir(parents=True)
        buffer.save(checkpoint / "replay")
        seal(checkpoint)
        return checkpoint

    def rows(self) -> set[str]:
        return set(self.folder.rows.hashes())
