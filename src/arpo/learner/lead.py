"""One learner on several ranks, driven from the first.

Invariant: whatever the leader is asked to do, every follower does too, in the same order and with the same
arguments; a follower acts on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from arpo.learner.learner import Learner
from arpo.trajectory import GroupMember, Trajectory
from arpo.trajectory.store import ImageSource

_END = "end"


class LeadLearner:
    """A `Learner` on rank 0, whose calls the followers repeat. The same on one rank, where there are none.

    `images` must be picklable where there are followers: `ScreenshotStore.get` of a folder that all ranks see.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def step(
        self, groups: Sequence[Sequence[GroupMember]], images: ImageSource, version: int | None = None
    ) -> dict[str, float]:
        """See `Learner.step`."""
        metrics: dict[str, float] = self._all("step", groups, images, version)
        return metrics

    def imitate_step(
        self, demonstrations: Sequence[Trajectory], images: ImageSource, lr: float
    ) -> dict[str, float]:
        """See `Learner.imitate_step`."""
        metrics: dict[str, float] = self._all("imitate_step", demonstrations, images, lr)
        return metrics

    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """See `Learner.token_logprobs`."""
        logprobs: list[list[float]] = self._all("token_logprobs", trajectories, images)
        return logprobs

    def sequence_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[float]:
        """See `Learner.sequence_logprobs`."""
        logprobs: list[float] = self._all("sequence_logprobs", trajectories, images)
        return logprobs

    def weights(self) -> Mapping[str, torch.Tensor]:
        """See `Learner.weights`."""
        weights: Mapping[str, torch.Tensor] = self._all("weights")
        return weights

    def begin_save(self, folder: Path) -> Future[None]:
        """See `Learner.begin_save`."""
        saved: Future[None] = self._all("begin_save", folder)
        return saved

    def load(self, folder: Path) -> None:
        """See `Learner.load`."""
        self._all("load", folder)

    def close(self) -> None:
        """Let the followers go."""
        self._learner.ranks.share((_END, ()))

    def _all(self, method: str, *arguments: Any) -> Any:
        self._learner.ranks.share((method, arguments))
        return getattr(self._learner, method)(*arguments)


def follow(learner: Learner) -> None:
    """Do what the leader does, until it lets go; for every rank but 0.

    Raises RuntimeError when the leader is gone. A ValueError of a call is the leader's to report: all ranks
    check the same arguments, so it is raised there as well.
    """
    while True:
        order: tuple[str, tuple[Any, ...]] = learner.ranks.share(None)
        method, arguments = order
        if method == _END:
            return
        try:
            getattr(learner, method)(*arguments)
        except ValueError:
            continue
