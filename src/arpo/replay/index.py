"""The index: what is known of a stored trajectory without reading its row.

Invariant: an index file is whole or not there; it names rows and holds none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from arpo.files import write_atomic
from arpo.trajectory import Trajectory

INDEX_FILE = "index.json"


class Stored(BaseModel):
    """A stored trajectory.

    policy_version: that its age is counted from: the one that sampled it, or for an imported one (whose sampler counted
    its own) the run's at the time it was taken in. step: the training step that stored it. stored_at: Unix time.
    images: sha256 of its screenshots.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    episode_id: str
    task_id: str
    domain: str
    score: float
    policy_version: int
    step: int | None
    stored_at: float
    turns: int
    tokens: int
    images: tuple[str, ...]
    sampler: Literal["policy", "script"]
    origin: Literal["rollout", "import"]

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        sha256: str,
        *,
        policy_version: int,
        step: int | None,
        stored_at: float,
        origin: Literal["rollout", "import"],
    ) -> Stored:
        """The entry of a trajectory with a score."""
        if trajectory.score is None:
            raise ValueError(f"episode {trajectory.episode_id} was not evaluated")
        return cls(
            sha256=sha256,
            episode_id=trajectory.episode_id,
            task_id=trajectory.task_id,
            domain=trajectory.domain,
            score=trajectory.score,
            policy_version=policy_version,
            step=step,
            stored_at=stored_at,
            turns=len(trajectory.turns),
            tokens=len(trajectory.token_ids),
            images=tuple(image.sha256 for image in trajectory.images),
            sampler=trajectory.sampler,
            origin=origin,
        )

    @classmethod
    def of_rollout(cls, trajectory: Trajectory, sha256: str, *, step: int | None) -> Stored:
        """The entry of one of the run's own episodes."""
        return cls.of(
            trajectory,
            sha256,
            policy_version=trajectory.policy_version,
            step=step,
            stored_at=trajectory.started_at + trajectory.duration_s,
            origin="rollout",
        )


class Index(BaseModel):
    """What a checkpoint holds of a replay buffer.

    stored: oldest first. taken: sha256 of the rows that were taken in from the inbox, ever. counts: of events that no
    line of metrics has told yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    stored: list[Stored] = []
    taken: list[str] = []
    counts: Counter[str] = Counter()

    def write(self, folder: Path) -> None:
        """Keep it in a folder."""
        write_atomic(folder / INDEX_FILE, self.model_dump_json().encode())

    @classmethod
    def read(cls, folder: Path) -> Index:
        """What `write` kept. Raises OSError when there is nothing, ValueError when it is damaged."""
        return cls.model_validate_json((folder / INDEX_FILE).read_bytes())
