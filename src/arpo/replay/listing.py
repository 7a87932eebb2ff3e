"""What a run has stored, read from outside while it trains or after it.

Invariant: nothing here writes, and nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from arpo.checkpoints.folders import latest
from arpo.config.load import load_config
from arpo.config.sections import ReplaySection
from arpo.protocol.problems import ConfigError
from arpo.replay.errors import ReplayError
from arpo.replay.folder import ReplayFolder
from arpo.replay.index import Index, Stored
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore, TrajectoryLog

_TRIES = 5


@dataclass(frozen=True)
class Listed:
    """A stored trajectory. where: in the newest checkpoint's buffer, or waiting in the inbox."""

    stored: Stored
    where: Literal["buffer", "inbox"]


class StoredRun:
    """The replay side of a run directory, which may not be there yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = ReplayFolder(root / "replay")
        self.screenshots = ScreenshotStore(root / "screenshots")

    @classmethod
    def existing(cls, root: Path) -> Self:
        """Raises ConfigError when there is no such directory."""
        if not root.is_dir():
            raise ConfigError(f"{root} is no run directory; fix: name one, <run.dir>/<run.name>")
        return cls(root)

    def listed(self, task: str | None = None) -> list[Listed]:
        """What the newest complete checkpoint's buffer holds, oldest first, then what the inbox holds besides.

        task: only of the task with this id. Raises ReplayError when an index is damaged.
        """
        index = self._newest_index()
        known = {*index.taken, *(stored.sha256 for stored in index.stored)}
        waiting = [entry.stored for entry in self.folder.inbox() if entry.stored.sha256 not in known]
        everything = [
            *(Listed(stored, "buffer") for stored in index.stored),
            *(Listed(stored, "inbox") for stored in waiting),
        ]
        return [one for one in everything if task is None or one.stored.task_id == task]

    def find(self, name: str) -> Listed:
        """The one whose sha256 begins with `name`, or whose episode it is. Raises ConfigError unless it is one."""
        found = {
            one.stored.sha256: one
            for one in self.listed()
            if one.stored.sha256.startswith(name) or one.stored.episode_id == name
        }
        if len(found) != 1:
            many = (
                f"{len(found)} stored trajectories are called" if found else "no stored trajectory is called"
            )
            raise ConfigError(f"{many} {name}; fix: take the id from `arpo replay list {self.root}`")
        return next(iter(found.values()))

    def demonstrations(self) -> Iterator[Trajectory]:
        """The successful demonstrations that the run recorded for its warm start."""
        above = self.success_above()
        return (t for t in TrajectoryLog(self.root / "trajectories").read(0) if t.succeeded(above))

    def success_above(self) -> float:
        """The run's `replay.success_above`; the default for a run that has not started."""
        path = self.root / "config.yaml"
        return (load_config(path).replay if path.exists() else ReplaySection()).success_above

    def tokenizer(self) -> str | None:
        """The fingerprint of the tokenizer that the stored token ids are of; None when nothing was stored yet.

        Raises ConfigError when they are of several.
        """
        recorded = self.folder.tokenizer()
        found = {entry.tokenizer for entry in self.folder.inbox()} | ({recorded} if recorded else set())
        if len(found) > 1:
            raise ConfigError(
                f"{self.folder.root}/inbox holds token ids of another tokenizer than the run's policy; "
                "fix: remove that folder and import what was made with this model.path"
            )
        return next(iter(found), None)

    def _newest_index(self) -> Index:
        """Of the newest complete checkpoint; an empty one when there is none."""
        for _ in range(_TRIES):
            newest = latest(self.root / "checkpoints")
            if newest is None:
                return Index()
            try:
                return Index.read(newest.path / "replay")
            except FileNotFoundError:
                continue  # training has published a newer one and removed this one
            except ValueError as error:
                raise ReplayError(f"the replay index of {newest} is damaged: {error}") from error
        raise ReplayError(
            f"{self.root}/checkpoints: no checkpoint stays long enough to be read; fix: try again"
        )
