"""Which checkpoints a run has.

Invariant: a folder named `step-000003` is complete. It is written under another name and renamed at the end, and its
manifest names every file, so a save that was killed and a copy that was cut short are both recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arpo.checkpoints import manifest


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint."""

    path: Path
    step: int

    def __str__(self) -> str:
        return str(self.path)


def complete(root: Path) -> list[Checkpoint]:
    """All complete checkpoints below `root`, oldest first."""
    found = []
    for path in root.glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match and manifest.is_complete(path):
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one."""
    return next(reversed(complete(root)), None)


def best(checkpoints: list[Checkpoint], success: Mapping[int, float]) -> Checkpoint | None:
    """The one whose step has the highest success, the newest of several; None when none was evaluated."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.step in success]
    return max(evaluated, key=lambda checkpoint: (success[checkpoint.step], checkpoint.step), default=None)
