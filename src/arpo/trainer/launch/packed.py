"""Weights as they travel between actors: arrays that Ray maps from shared memory and copies nowhere.

Invariant: packing and unpacking changes no bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Packed:
    """Whole parameters by name: (bytes, type's name, shape), as numpy has no bfloat16."""

    tensors: Mapping[str, tuple[np.ndarray[Any, Any], str, tuple[int, ...]]]


def pack(weights: Mapping[str, torch.Tensor]) -> Packed:
    """Copies of nothing that is on the CPU and contiguous already."""
    packed = {}
    for name, tensor in weights.items():
        there = tensor.detach().cpu().contiguous()
        data = there.reshape(-1).view(torch.uint8).numpy()
        packed[name] = (data, str(there.dtype).removeprefix("torch."), tuple(there.shape))
    return Packed(packed)


def unpack(packed: Packed) -> dict[str, torch.Tensor]:
    """Views of the packed bytes, to be read only."""
    with warnings.catch_warnings():
        # what is mapped from Ray's store cannot be written, of which torch warns; an engine copies it
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return {
            name: torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)
            for name, (data, dtype, shape) in packed.tensors.items()
        }
