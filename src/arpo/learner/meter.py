"""Metrics of one learner step.

Invariant: a token-wise metric is a mean over the tokens of all ranks, whatever the cut into passes, minibatches
and ranks was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

import torch

from arpo.learner.optimizer import StepResult
from arpo.learner.ranks import Ranks

_WITH_MAXIMUM = ("ratio", "engine_logprob_gap")


class Meter:
    """Collects what the passes of a step report on this rank."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._maxima: dict[str, float] = {}
        self._loss = 0.0
        self._results: list[StepResult] = []

    def tokens(self, name: str, values: torch.Tensor) -> None:
        """Add one value a token (of some of the tokens, for metrics that only some have)."""
        if not values.numel():
            return
        self._sums[name] += float(values.double().sum())
        self._counts[name] += values.numel()
        if name in _WITH_MAXIMUM:
            self._maxima[name] = max(self._maxima.get(name, 0.0), float(values.max()))

    def loss(self, value: torch.Tensor) -> None:
        """Add a pass's part of its minibatch's loss."""
        self._loss += float(value.detach())

    def optimizer_step(self, result: StepResult) -> None:
        """Add a finished minibatch; the result is the same on all ranks."""
        self._results.append(result)

    def metrics(self, ranks: Ranks) -> Mapping[str, float]:
        """Everything, of all ranks, named `learner/…`. Every rank must call it."""
        results = self._results
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        maxima: dict[str, float] = {}
        loss = 0.0
        for their_sums, their_counts, their_maxima, their_loss in ranks.gather(
            (dict(self._sums), dict(self._counts), self._maxima, self._loss)
        ):
            loss += their_loss
            for name, value in their_sums.items():
                sums[name] += value
                counts[name] += their_counts[name]
            for name, value in their_maxima.items():
                maxima[name] = max(maxima.get(name, 0.0), value)
        return {
            "learner/loss": loss / max(1, len(results)),
            "learner/grad_norm": fmean(r.grad_norm for r in results) if results else 0.0,
            "learner/lr": results[-1].lr if results else 0.0,
            "learner/optimizer_steps": float(sum(r.applied for r in results)),
            "learner/skipped_steps": float(sum(not r.applied for r in results)),
            "learner/tokens": float(counts["ratio"]),
            **{f"learner/{name}": sums[name] / counts[name] for name in sums},
            **{f"learner/{name}_max": value for name, value in maxima.items()},
        }
