"""AdamW over sharded weights.

Invariant: gradients are summed in fp32 or better whatever the weights' dtype is, all ranks agree on the norm, and
a step with a gradient that is not finite changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arpo.learner.ranks import Ranks
from arpo.learner.sharding import local

_EPSILON = 1e-8


@dataclass(frozen=True)
class StepResult:
    """applied: false when the gradient was not finite. grad_norm: before clipping. lr: of this step."""

    applied: bool
    grad_norm: float
    lr: float


class AdamW:
    """AdamW (arXiv 1711.05101) over named parameters, in place.

    fp32 and fp64 parameters are updated as they are. bf16 parameters have Kahan's compensation: what an update
    loses to rounding is kept in bf16 and added to the next, so that small updates are not lost. Their first
    moment is bf16; the second is fp32, because bf16 cannot hold its small changes. Bytes a parameter, without
    gradients: 12 in fp32, 10 in bf16.

    parameters: those to train, by name. lr: peak learning rate. warmup_steps: the k-th applied step has
    lr · min(1, k / warmup_steps), so the first one is never 0. grad_clip: largest global gradient norm.
    ranks: the processes that the parameters are sharded over; None: none.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        grad_clip: float = 1.0,
        ranks: Ranks | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._lr = lr
        self._warmup_steps = warmup_steps
        self._weight_decay = weight_decay
        self._betas = betas
        self._grad_clip = grad_clip
        self._ranks = ranks
        self._steps = torch.zeros((), dtype=torch.long)
        self._skipped = torch.zeros((), dtype=torch.long)
        self._sums: dict[str, torch.Tensor] = {}
        # made here and not at the first step, so that a checkpoint always has the same tensors
        self._state = {name: _fresh_state(p.detach()) for name, p in self._parameters.items()}

    @property
    def skipped(self) -> int:
        """Steps that were not applied because their gradient was not finite."""
        return int(self._skipped)

    @property
    def next_lr(self) -> float:
        """The learning rate of the next step."""
        if self._warmup_steps == 0:
            return self._lr
        return self._lr * min(1.0, (int(self._steps) + 1) / self._warmup_steps)

    @torch.no_grad()
    def accumulate(self) -> None:
        """Call it after each backward pass: gradients that torch would sum in bf16 are summed in fp32 here."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None or _wide(parameter.dtype) == parameter.dtype:
                continue
            gradient = local(parameter.grad)
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient.to(_wide(gradient.dtype))
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> StepResult:
        """Clip, update and forget the gradients. Every rank must call it."""
        gradients, lr = self._take_gradients(), self.next_lr
        norm = self._norm(gradients.values())
        applied = math.isfinite(norm)
        if not applied:
            self._skipped += 1
        elif gradients:
            self._steps += 1
            scale = min(1.0, self._grad_clip / (norm + 1e-6))
            for name, gradient in gradients.items():
                self._update(name, gradient.mul_(scale) if scale < 1 else gradient, lr)
        return StepResult(applied and bool(gradients), norm, lr)

    def state_dict(self) -> dict[str, Any]:
        """Tensors by parameter name, sharded as the parameters are, and counters. Views, not copies."""
        return {"steps": self._steps, "skipped": self._skipped, "adamw": self._state}

    def _take_gradients(self) -> dict[str, torch.Tensor]:
        """This rank's part of every gradient there is; nothing is left of them elsewhere."""
        self.accumulate()
        gradients, self._sums = self._sums, {}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                gradients[name] = local(parameter.grad)
                parameter.grad = None
        return gradients

    def _norm(self, gradients: Iterable[torch.Tensor]) -> float:
        """The global norm of the gradients, over all ranks."""
        square = float(nn.utils.get_total_norm(gradients)) ** 2
        return math.sqrt(self._ranks.sum(square) if self._ranks else square)

    def _update(self, name: str, gradient: torch.Tensor, lr: float) -> None:
        weight = local(self._parameters[name].detach())
        state = {key: local(tensor) for key, tensor in self._state[name].items()}
        steps, (beta1, beta2) = int(self._steps), self._betas
        gradient = gradient.to(weight.device)
        first = state["exp_avg"].to(gradient.dtype).lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].copy_(first)
        deviation = (second.sqrt() / math.sqrt(1 - beta2**steps)).add_(_EPSILON)
        step_size = lr / (1 - beta1**steps)
        if "lost" not in state:
            weight.mul_(1 - lr * self._weight_decay).addcdiv_(first, deviation, value=-step_size)
            return
        wide = weight.float()
        update = state["lost"].float().addcdiv_(first, deviation, value=-step_size)
        update.add_(wide, alpha=-lr * self._weight_decay)
        weight.copy_(wide + update)
        state["lost"].copy_(update - (weight.float() - wide))


def _fresh_state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    wide = _wide(parameter.dtype)
    state = {
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter, dtype=wide),
    }
    return state | ({"lost": torch.zeros_like(parameter)} if wide != parameter.dtype else {})


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of that type are kept in: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)
