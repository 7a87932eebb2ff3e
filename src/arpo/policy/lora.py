"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model, and how they are folded into its weights.

Invariant: whoever reads the policy from outside (engine, export) sees an ordinary model: W + alpha/rank · B·A
under W's own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

LORA_FILE = "lora.json"
"""Stands beside the config of a policy that has adapters."""

_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer"


@dataclass(frozen=True)
class Lora:
    """rank of the update; it is scaled by alpha / rank; dropout: of what the adapters read, while training."""

    rank: int
    alpha: float
    dropout: float = 0.0

    def save(self, folder: Path) -> None:
        """Write `lora.json`."""
        (folder / LORA_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote, if it did. Raises ValueError or TypeError when the file is damaged."""
        path = folder / LORA_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def inject(model: nn.Module, lora: Lora, *, seed: int) -> None:
    """Freeze the whole model and put trainable adapters on every linear layer of its language model.

    The update is zero at first (B = 0); seed: of A.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(requires_grad=False)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_TARGETS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merged(state: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """Parameters by name with adapters → those of the ordinary model, the update added in fp32."""
    result = {}
    for name, tensor in state.items():
        if name.endswith((_A, _B)):
            continue
        stem, base, end = name.rpartition(_BASE)
        if base and f"{stem}{_A}" in state and end == ".weight":
            a, b = state[f"{stem}{_A}"], state[f"{stem}{_B}"]
            update = b.float() @ a.float() * (lora.alpha / lora.rank)
            tensor = (tensor.float() + update.to(tensor.device)).to(tensor.dtype)
        result[f"{stem}{end}" if base else name] = tensor
    return result


def fold(model: Any) -> None:
    """Replace every adapted layer by an ordinary one with the adapters added to its weight, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
