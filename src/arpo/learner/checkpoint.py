"""Loading checkpoints of a training run. `arpo.checkpoints` finds them, `arpo.learner.checkpointer` writes them.

    step-000003/  tensors/ (learner)  policy/ (model folder without weights)  replay/  state.json  manifest.json

Invariant: a checkpoint that is damaged is never loaded in silence, and never takes the place of a sound one.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.distributed.checkpoint.api import CheckpointException

from arpo.checkpoints import manifest
from arpo.checkpoints.folders import Checkpoint, complete
from arpo.protocol.problems import ArpoError

TENSORS = "tensors"
POLICY = "policy"
REPLAY = "replay"
STATE = "state.json"
REPLACED = "replaced"
"""Inside a hidden folder: a checkpoint that makes room for another of the same step."""

UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, CheckpointException)
"""What reading a damaged checkpoint, or one of another model, raises."""


class CheckpointError(ArpoError):
    """A checkpoint cannot be loaded or written; the message names it."""


class Loads(Protocol):
    """Something that takes its state from a folder: the learner, the replay buffer."""

    def load(self, folder: Path) -> None:
        """Raises one of `UNREADABLE`."""


def newest_sound(root: Path, damaged: Callable[[Checkpoint, str], None]) -> Checkpoint | None:
    """The newest complete checkpoint of which every byte is as it was written; None when there is none at all.

    damaged: told of every newer one that is passed over, and why. Raises CheckpointError when all are damaged: going on
    from nothing would throw the run away.
    """
    found = complete(root)
    for checkpoint in reversed(found):
        wrong = manifest.damage(checkpoint.path)
        if wrong is None:
            return checkpoint
        damaged(checkpoint, wrong)
    if found:
        raise CheckpointError(
            f"every checkpoint in {root} is damaged; fix: restore one from a copy, or choose another run.name"
        )
    return None


def set_aside(damaged: Checkpoint) -> None:
    """Rename a checkpoint so that it is one no more, and is there to be looked at."""
    aside = damaged.path.with_name(f"damaged-{damaged.path.name}")
    if aside.exists():
        shutil.rmtree(aside)
    damaged.path.rename(aside)


def tidy(root: Path) -> None:
    """Remove what a killed save left below `root`, and bring back a checkpoint whose replacement never came.

    Only for the one process that writes there.
    """
    for hidden in root.glob(".step-*"):
        step = hidden.name.split(".")[1]
        replaced = hidden / REPLACED
        if replaced.exists() and not (root / step).exists():
            replaced.rename(root / step)
        shutil.rmtree(hidden)


def capture(state: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `state.json`: a state as JSON (tuples come back as lists), and the random generators as they are now.

    The generators are those of Python, numpy and torch.
    """
    return {"state": dict(state), "random": _random_states()}


def load(checkpoint: Checkpoint, *, learner: Loads, replay: Loads) -> dict[str, Any]:
    """Restore learner, replay buffer and random generators; returns the captured `state`.

    Raises CheckpointError when the checkpoint is damaged or of another model. Learner and buffer may then hold a mixture of
    old and new: load another checkpoint before using them.
    """
    try:
        document = json.loads((checkpoint.path / STATE).read_text(encoding="utf-8"))
        learner.load(checkpoint.path / TENSORS)
        replay.load(checkpoint.path / REPLAY)
        _restore_random_states(document["random"])
        state: dict[str, Any] = document["state"]
    except UNREADABLE as error:
        raise unreadable(checkpoint, error) from error
    return state


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The captured `state` alone. Raises CheckpointError."""
    try:
        document = json.loads((checkpoint.path / STATE).read_text(encoding="utf-8"))
        state: dict[str, Any] = document["state"]
    except UNREADABLE as error:
        raise unreadable(checkpoint, error) from error
    return state


def unreadable(checkpoint: Checkpoint, error: BaseException) -> CheckpointError:
    """The one-line error for a checkpoint that cannot be loaded."""
    return CheckpointError(f"checkpoint {checkpoint} cannot be loaded: {reason(error)}")


def reason(error: BaseException) -> str:
    """What an error says first, or what it is; that of a rank stands for them all."""
    if isinstance(error, CheckpointException) and error.failures:
        return reason(next(iter(error.failures.values()))[0])
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _random_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()],
    }


def _restore_random_states(states: Mapping[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(_bytes_tensor(states["torch"]))
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes_tensor(state) for state in states["cuda"]])


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
