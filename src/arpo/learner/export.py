"""From a checkpoint to an ordinary Hugging Face folder, or into a model that is there.

Invariant: what is exported has the weights that the engine would have sampled with, LoRA adapters merged in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from arpo.checkpoints.folders import Checkpoint
from arpo.learner import tensors
from arpo.learner.checkpoint import POLICY, TENSORS, UNREADABLE, unreadable
from arpo.policy.load import blank_model
from arpo.policy.lora import LORA_FILE, Lora, merged
from arpo.policy.quiet import no_progress_bars
from arpo.protocol.problems import ConfigError


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The policy's parameters by name, on the CPU, adapters merged. Raises CheckpointError when it is damaged."""
    try:
        state = tensors.read(checkpoint.path / TENSORS, "model")
        lora = Lora.load(checkpoint.path / POLICY)
    except UNREADABLE as error:
        raise unreadable(checkpoint, error) from error
    return merged(state, lora) if lora else state


def fill(model: Any, checkpoint: Checkpoint) -> None:
    """Give an ordinary model that was made from the checkpoint's blueprint its weights. Raises CheckpointError."""
    _set(model, weights(checkpoint), checkpoint)


def export(
    checkpoint: Checkpoint, folder: Path, dtype: Literal["float32", "bfloat16"] | None = None
) -> Literal["float32", "bfloat16"]:
    """Write the folder, which appears whole or not at all; returns the weights' type.

    dtype: of the weights; None: as they were trained. Raises ConfigError when the folder holds something or cannot be
    written, CheckpointError when the checkpoint is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already and is not an empty folder; fix: name another one")
    state = weights(checkpoint)
    trained: Literal["float32", "bfloat16"] = (
        "bfloat16" if any(tensor.dtype == torch.bfloat16 for tensor in state.values()) else "float32"
    )
    chosen = dtype or trained
    blueprint = checkpoint.path / POLICY
    try:
        model = blank_model(blueprint, chosen)
    except UNREADABLE as error:
        raise unreadable(checkpoint, error) from error
    _set(model, state, checkpoint)
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        scratch.chmod(0o755)  # mkdtemp makes it private
        shutil.copytree(blueprint, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LORA_FILE))
        with no_progress_bars():
            model.save_pretrained(scratch)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder} cannot be written: {error}; fix: name a folder that can, with room"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return chosen


def _set(model: Any, state: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name])
    except (KeyError, RuntimeError) as error:
        raise unreadable(checkpoint, error) from error
