"""A reply that grows: what was sampled so far, by which versions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from arpo.rollout.engines.base import Generation


@dataclass
class Reply:
    """Filled by one vLLM request after the other; a push between two of them ends the first."""

    asked: float = field(default_factory=time.monotonic)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    """(index, version): from that token on."""
    stopped: bool = False
    queued_s: float = 0.0

    def add(self, output: Any, version: int) -> None:
        """Take the next tokens (vLLM's `RequestOutput`, a delta), which a version sampled."""
        (completion,) = output.outputs
        ids = list(completion.token_ids)
        if not ids:
            return
        if not self.versions:
            metrics = output.metrics
            prefill_s = metrics.first_token_ts - metrics.scheduled_ts
            self.queued_s = max(0.0, time.monotonic() - self.asked - prefill_s)
        if not self.versions or self.versions[-1][1] != version:
            self.versions.append((len(self.token_ids), version))
        self.token_ids += ids
        self.logprobs += [
            float(ranked[token].logprob) for token, ranked in zip(ids, completion.logprobs, strict=True)
        ]

    def generation(self, version: int) -> Generation:
        """The whole. version: named when nothing was sampled."""
        first, *later = self.versions or [(0, version)]
        return Generation(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            policy_version=first[1],
            stopped=self.stopped,
            pushes=tuple(later),
            queued_s=self.queued_s,
        )
