"""The contract between the training loop and whatever it trains and samples with.

Invariant: the loop never asks where a learner or an engine works; weights pass from one to the other by `publish` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.policy.load import Policy
from arpo.protocol.problems import ArpoError
from arpo.rollout.engines.base import Engine
from arpo.trainer.source import PolicySource
from arpo.trajectory import GroupMember, Trajectory
from arpo.trajectory.store import ImageSource


class LearnerLost(ArpoError):  # noqa: N818 - says what happened to it
    """A learner rank is gone, and the state of the others with it. The newest checkpoint is where it goes on."""


class RunLearner(Protocol):
    """What the loop asks of a learner, on however many ranks. Its methods block, and one thread at a time calls them.

    Every method raises LearnerLost where a lost rank can be replaced.
    """

    def step(
        self, groups: Sequence[Sequence[GroupMember]], images: ImageSource, version: int | None = None
    ) -> dict[str, float]:
        """See `Learner.step`."""

    def imitate_step(
        self, demonstrations: Sequence[Trajectory], images: ImageSource, lr: float
    ) -> dict[str, float]:
        """See `Learner.imitate_step`."""

    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """See `Learner.token_logprobs`."""

    def sequence_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[float]:
        """See `Learner.sequence_logprobs`."""

    def begin_save(self, folder: Path) -> Future[None]:
        """See `Learner.begin_save`."""

    def load(self, folder: Path) -> None:
        """See `Learner.load`."""


@dataclass(frozen=True)
class Plan:
    """What a process has to know to make the run's learner or engine; it may be on another machine.

    saved: an engine that no learner gives weights to takes those of this checkpoint. policy_version: what the engine calls
    the weights that it begins with.
    """

    config: Config
    source: PolicySource
    saved: Checkpoint | None = None
    policy_version: int = 0


class Launcher(Protocol):
    """Starts engine and learner of one run, and gives the engine the learner's weights.

    An async context manager: what it needs itself is there inside.
    """

    async def __aenter__(self) -> Self:
        """Raises ConfigError or ArpoError when there is no place to work."""

    async def __aexit__(self, *exc: object) -> None:
        """Everything that was started has ended."""

    @property
    def engine_restarts(self) -> int:
        """How often an engine was started again."""

    def policy(self, plan: Plan) -> Policy:
        """What this process keeps of the policy: encoder, tokenizer and blueprint; the weights only if it uses them."""

    def engine(self, plan: Plan, policy: Policy) -> AbstractAsyncContextManager[Engine]:
        """The engine, ready to sample. policy: from `policy`."""

    def learner(self, plan: Plan, policy: Policy) -> AbstractAsyncContextManager[RunLearner]:
        """The learner on all its ranks, from here on the owner of the policy's model. Called once, inside of `engine`."""

    async def make_room(self) -> None:
        """The learner is about to compute: an engine on its GPUs gives their memory away until `publish`."""

    async def publish(self, version: int) -> None:
        """Give the engine the learner's weights as that policy version. Raises EngineError, LearnerLost."""
