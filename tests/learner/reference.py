"""ARPO's step written out as loops in float64, from the paper's formulas: nothing of the product is used.

The model's forward pass is transformers' own, one unpadded row at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class ReferenceRow:
    """One trajectory: ids, which of them were sampled, their behaviour log-probs, pictures, reward."""

    token_ids: Sequence[int]
    sampled: Sequence[bool]
    behaviour: Sequence[float]
    pixel_values: Sequence[torch.Tensor]
    grids: Sequence[tuple[int, int, int]]
    reward: float
    replayed: bool = False


@dataclass
class Rule:
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float | None = 3.0
    importance_cap: float | None = 2.0  # of replayed tokens; None: weight 1, as published
    fresh_cap: float | None = 2.0  # of fresh tokens
    temperature: float = 1.0
    advantage: str = "grpo"
    mean: str = "token"
    mean_constant: int = 1024
    kl: str = "off"
    kl_coef: float = 0.001


def standardised(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [0.0 for _ in values]
    mean = sum(values) / len(values)
    variance = 0.0
    for value in values:
        variance += (value - mean) * (value - mean)
    std = math.sqrt(variance / (len(values) - 1))
    if std < 1e-12:
        return [0.0 for _ in values]
    return [(value - mean) / (std + 1e-6) for value in values]


def advantages(groups: Sequence[Sequence[float]], estimator: str) -> list[list[float]]:
    if estimator == "grpo":
        return [standardised(rewards) for rewards in groups]
    result: list[list[float]] = []
    for rewards in groups:
        values = []
        for index, reward in enumerate(rewards):
            others = [r for k, r in enumerate(rewards) if k != index]
            if estimator == "reinforce++":
                values.append(reward)
            elif not others:
                values.append(0.0)
            elif estimator == "rloo":
                values.append(reward - sum(others) / len(others))
            else:
                values.append(reward - sum(rewards) / len(rewards))
        result.append(values)
    if estimator.startswith("reinforce++"):
        flat = standardised([value for values in result for value in values])
        for values in result:
            for index in range(len(values)):
                values[index] = flat.pop(0)
    return result


def divergence(log_pi: torch.Tensor, log_pi_ref: float, kl: str) -> torch.Tensor:
    if kl == "k1":
        return log_pi - log_pi_ref
    if kl == "k2":
        return (log_pi - log_pi_ref) * (log_pi - log_pi_ref) / 2
    r = torch.exp(log_pi_ref - log_pi)
    return r - torch.log(r) - 1


def token_loss(ratio: Any, advantage: float, rule: Rule) -> Any:
    """The loss of one token; `ratio` is a number or a tensor with one element."""
    value = ratio if isinstance(ratio, float) else float(ratio.detach())
    clipped: Any = ratio
    if value < 1 - rule.clip_low:
        clipped = value = 1 - rule.clip_low
    if value > 1 + rule.clip_high:
        clipped = value = 1 + rule.clip_high
    unclipped = ratio if isinstance(ratio, float) else float(ratio.detach())
    loss, size = -ratio * advantage, -unclipped * advantage
    if -value * advantage > size:
        loss, size = -clipped * advantage, -value * advantage
    if advantage < 0 and rule.dual_clip is not None and size > -rule.dual_clip * advantage:
        loss = -rule.dual_clip * advantage
    return loss


def row_logprobs(
    model: Any, row: ReferenceRow, rule: Rule, image_id: int, video_id: int
) -> list[torch.Tensor]:
    """log π of every sampled token of a row, one tensor each."""
    ids = torch.tensor([list(row.token_ids)])
    vision = {}
    if row.pixel_values:
        vision = {
            "pixel_values": torch.cat(list(row.pixel_values)).double(),
            "image_grid_thw": torch.tensor(row.grids),
            "mm_token_type_ids": (ids == image_id).int(),
        }
    logits = model(input_ids=ids, **vision).logits[0]
    values = []
    for index, sampled in enumerate(row.sampled):
        if not sampled:
            continue
        scaled = logits[index - 1] / rule.temperature
        allowed = [k for k in range(scaled.shape[0]) if k not in (image_id, video_id)]
        normaliser = torch.logsumexp(scaled[allowed], dim=0)
        values.append(scaled[row.token_ids[index]] - normaliser)
    return values


def loss_and_gradient(
    model: Any,
    groups: Sequence[Sequence[ReferenceRow]],
    rule: Rule,
    *,
    image_id: int,
    video_id: int,
    old: Sequence[Sequence[float]] | None = None,
    ref: Sequence[Sequence[float]] | None = None,
) -> tuple[float, dict[str, torch.Tensor], list[list[float]]]:
    """Loss, gradient of every trained parameter, and log π of all tokens, row after row.

    old: log π_old of all tokens, ref: those of the reference; None: the model's own, without gradient.
    """
    model = copy.deepcopy(model).double()
    model.zero_grad()
    counts = [sum(row.sampled) for group in groups for row in group]
    sequences = sum(1 for count in counts if count)
    loss: Any = torch.zeros((), dtype=torch.float64)
    seen: list[list[float]] = []
    all_advantages = advantages([[r.reward for r in group] for group in groups], rule.advantage)
    for group, values in zip(groups, all_advantages, strict=True):
        for row, advantage in zip(group, values, strict=True):
            current = row_logprobs(model, row, rule, image_id, video_id)
            behaviour = [b for b, sampled in zip(row.behaviour, row.sampled, strict=True) if sampled]
            number = len(seen)
            seen.append([float(value.detach()) for value in current])
            for index, log_pi in enumerate(current):
                log_pi_old = float(log_pi.detach()) if old is None else old[number][index]
                cap = rule.importance_cap if row.replayed else rule.fresh_cap
                weight = 1.0
                if cap is not None:
                    weight = min(math.exp(log_pi_old - behaviour[index]), cap)
                term = weight * token_loss(torch.exp(log_pi - log_pi_old), advantage, rule)
                if rule.kl != "off":
                    log_pi_ref = float(log_pi.detach()) if ref is None else ref[number][index]
                    term = term + rule.kl_coef * divergence(log_pi, log_pi_ref, rule.kl)
                if rule.mean == "token":
                    loss = loss + term / sum(counts)
                elif rule.mean == "sequence":
                    loss = loss + term / counts[number] / sequences
                else:
                    loss = loss + term / rule.mean_constant / sequences
    if loss.requires_grad:
        loss.backward()
    gradient = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return float(loss.detach()), gradient, seen
