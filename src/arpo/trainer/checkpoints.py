"""Which checkpoint of a run: the newest, the best by evaluation, or one by name.

Invariant: a damaged checkpoint is never used, and never passed over in silence.

Torch is loaded only by what reads a checkpoint: an evaluation of a model server has none and waits for none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from arpo.checkpoints import folders, manifest
from arpo.checkpoints.folders import Checkpoint
from arpo.protocol.problems import ConfigError

Say = Callable[[str], None]


def folder(run: Path) -> Path:
    """Where a run's checkpoints are."""
    return run / "checkpoints"


def evaluated(run: Path) -> dict[int, float]:
    """Success by step, from the evaluations that training made."""
    success: dict[int, float] = {}
    for path in (run / "evaluations").glob("*.json"):
        if path.stem in ("before", "after") or path.stem.startswith("step-"):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["success"] is not None:
                success[document["step"]] = document["success"]
    return success


def choose(run: Path, which: str, say: Say) -> Checkpoint | None:
    """The checkpoint called `latest`, `best` or `step-N`; None when the run has none at all and `latest` is asked for.

    `latest` passes over damaged ones and says so. Raises ConfigError when there is no such checkpoint, CheckpointError when
    it is damaged.
    """
    from arpo.learner import checkpoint

    root = folder(run)
    if which == "latest":
        return checkpoint.newest_sound(root, lambda passed, why: say(_passed_over(passed, why)))
    found = folders.complete(root)
    if which == "best":
        chosen = folders.best(found, evaluated(run))
        lacks = f"no checkpoint of {run} was evaluated in training"
    else:
        number = which.removeprefix("step-")
        chosen = next((c for c in found if number.isdecimal() and c.step == int(number)), None)
        lacks = f"{run} has no checkpoint {which}"
    if chosen is None:
        there = ", ".join(["latest", *(c.path.name for c in found)]) if found else "none, so train first"
        raise ConfigError(f"{lacks}; fix: choose one that is there: {there}")
    if (why := manifest.damage(chosen.path)) is not None:
        raise checkpoint.CheckpointError(f"checkpoint {chosen} is damaged: {why}")
    return chosen


def newest_to_resume(run: Path, say: Say) -> tuple[Checkpoint | None, int]:
    """Where a run goes on, and how many newer checkpoints are damaged; those go aside as `damaged-step-N`.

    Only for the process that owns the run. Raises CheckpointError when all are damaged.
    """
    from arpo.learner import checkpoint

    checkpoint.tidy(folder(run))
    passed: list[Checkpoint] = []

    def pass_over(damaged: Checkpoint, why: str) -> None:
        passed.append(damaged)
        say(_passed_over(damaged, why))

    chosen = checkpoint.newest_sound(folder(run), pass_over)
    for damaged in passed:
        checkpoint.set_aside(damaged)
    return chosen, len(passed)


def _passed_over(damaged: Checkpoint, why: str) -> str:
    return f"checkpoint {damaged} is damaged ({why}): the next older one is used"
