"""Imitation of demonstrations: cross-entropy on the tokens that the policy would have sampled."""

from __future__ import annotations

from collections.abc import Sequence

from arpo.learner.optimizer import AdamW
from arpo.learner.passes import Passes
from arpo.learner.rows import whole_row
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ImageSource


class Imitator:
    """Trains a policy on demonstrations, with optimizer moments of its own."""

    def __init__(self, passes: Passes, *, lr: float, grad_clip: float) -> None:
        self.lr = lr
        self._passes = passes
        self._optimizer = AdamW(passes.policy.trained, lr=lr, grad_clip=grad_clip, ranks=passes.ranks)

    def step(self, demonstrations: Sequence[Trajectory], images: ImageSource) -> dict[str, float]:
        """One optimizer step: minus the mean log-prob of all their sampled tokens.

        Raises ValueError when there is no token to imitate.
        """
        rows = [whole_row(demonstration) for demonstration in demonstrations]
        total = sum(len(row.sampled) for row in rows)
        if total == 0:
            raise ValueError("the demonstrations have no token to imitate")
        loss = 0.0
        for _, tokens in self._passes.run(rows, images):
            part = -tokens.logprobs.sum() / total
            part.backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            loss += float(part.detach())
        result = self._optimizer.step()
        return {
            "imitation/loss": self._passes.ranks.sum(loss),
            "imitation/grad_norm": result.grad_norm,
            "imitation/tokens": float(total),
            "imitation/applied": float(result.applied),
        }
