"""The policy loss, in the paper's symbols.

Invariant: the loss is a sum over tokens, each with a divisor that depends on the whole batch alone, so
cutting a batch into packed rows, micro-batches and ranks changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from arpo.config.sections import LearnerSection


@dataclass(frozen=True)
class PolicyLoss:
    """loss: a scalar that carries gradients. tokens: one value a token, detached, for the metrics."""

    loss: torch.Tensor
    tokens: dict[str, torch.Tensor]


def policy_loss(
    log_pi: torch.Tensor,
    log_pi_old: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    share: torch.Tensor,
    *,
    section: LearnerSection,
    log_pi_ref: torch.Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped objective with an asymmetric clip and a dual clip, for N sampled tokens.

        ρ    = π(token) / π_old(token)
        L    = max(−ρ·A, −clip(ρ, 1 − ε_low, 1 + ε_high)·A)
        L    = min(L, −c·A)                                    where A < 0 and the dual clip is on
        loss = Σ s·(w·L + β·KL)

    log_pi, log_pi_old, advantage, weight, share: [N]; only log_pi carries gradients. log_pi_old: the
    learner's own log-probs at the start of the step. weight: see `importance_weight`. share: each token's
    part of the mean, see `shares`. log_pi_ref: the reference's log-probs, wanted unless `learner.kl` is off;
    KL is weighted by β = `learner.kl_coef`. The clip is PPO's (arXiv 1707.06347), asymmetric as in DAPO
    (arXiv 2503.14476); the dual clip is that of arXiv 1912.09729.
    """
    log_ratio = log_pi - log_pi_old
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - section.clip_low, 1 + section.clip_high)
    unclipped, clipped = -ratio * advantage, -clipped_ratio * advantage
    loss = torch.maximum(unclipped, clipped)
    dual_clipped = torch.zeros_like(ratio, dtype=torch.bool)
    if section.dual_clip is not None:
        bound = -section.dual_clip * advantage
        dual_clipped = (advantage < 0) & (loss > bound)
        loss = torch.where(dual_clipped, bound, loss)
    # the clip bites where the clipped branch is the larger one: gradients stop there
    bites = clipped > unclipped
    with torch.no_grad():
        tokens = {
            "clip_low": (bites & (ratio < 1)).to(ratio.dtype),
            "clip_high": (bites & (ratio > 1)).to(ratio.dtype),
            "dual_clip": dual_clipped.to(ratio.dtype),
            "ratio": ratio.detach(),
            # Schulman's low-variance estimate of KL(π_old ‖ π) from samples of π_old
            "kl": ratio - 1 - log_ratio,
        }
    total = weight * loss
    if log_pi_ref is not None and section.kl != "off":
        divergence = kl_divergence(log_pi, log_pi_ref, section.kl)
        tokens["kl_reference"] = divergence.detach()
        total = total + section.kl_coef * divergence
    return PolicyLoss(loss=(share * total).sum(), tokens=tokens)


def kl_divergence(log_pi: torch.Tensor, log_pi_ref: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimates of KL(π ‖ π_ref) from one sample a token, [N] (Schulman, http://joschu.net/blog/kl-approx.html).

    k1 = log π − log π_ref: unbiased, of either sign; as a loss its gradient is zero on average. k2 = ½·k1²:
    biased, with the gradient of the divergence. k3 = r − 1 − log r with r = π_ref/π: unbiased, never
    negative. Raises ValueError for another name.
    """
    k1 = log_pi - log_pi_ref
    match estimator:
        case "k1":
            return k1
        case "k2":
            return 0.5 * k1**2
        case "k3":
            return torch.exp(-k1) - 1 + k1
        case _:
            raise ValueError(f"{estimator} is no estimator of a KL divergence")


def shares(counts: Sequence[int], section: LearnerSection) -> list[float]:
    """What one token of each sequence contributes to the mean of its minibatch.

    counts: sampled tokens of all its sequences, on all ranks. `token`: 1 / Σ counts; `sequence`: 1 / (n·count),
    n being the sequences with any token; `constant`: 1 / (n·mean_constant), Dr.GRPO's (arXiv 2503.20783),
    under which a token counts the same in a long answer as in a short one.
    """
    tokens, sequences = max(1, sum(counts)), max(1, sum(count > 0 for count in counts))
    match section.mean:
        case "token":
            return [1 / tokens] * len(counts)
        case "sequence":
            return [1 / (sequences * max(1, count)) for count in counts]
        case "constant":
            return [1 / (sequences * section.mean_constant)] * len(counts)


def importance_weight(log_pi_old: torch.Tensor, log_pi_behaviour: torch.Tensor, cap: float) -> torch.Tensor:
    """w = min(π_old / π_behaviour, cap) of each token: truncated importance sampling, no gradient.

    π_behaviour is the policy that sampled the token: the engine's for a fresh one, that of the time when it
    was stored for a replayed one. The cap bounds the variance (Ionides 2008).
    """
    return (log_pi_old - log_pi_behaviour).detach().exp().clamp(max=cap)
