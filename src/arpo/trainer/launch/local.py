"""The engine in this process, and the learner in it too: alone, or leading ranks of this machine or of torchrun."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from arpo.learner.lead import LeadLearner
from arpo.policy.load import Policy
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.vllm import VllmEngine
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.factory import load_sampled, start_engine
from arpo.trainer.ranks import leading


class LocalLauncher:
    """A `Launcher`. A lost rank ends the run: what is left of this process's group cannot be joined again."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._colocated: VllmEngine | None = None
        self._learner: LeadLearner | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing is held outside of `engine` and `learner`."""

    @property
    def engine_restarts(self) -> int:
        """None: the engine ends with its process."""
        return 0

    def policy(self, plan: Plan) -> Policy:
        """With weights: those of the checkpoint if the plan names one to sample with."""
        return load_sampled(plan) if plan.saved else plan.source.load(plan.config, adapters=True)

    @asynccontextmanager
    async def engine(self, plan: Plan, policy: Policy) -> AsyncIterator[Engine]:
        """An engine with a copy of the policy."""
        self._engine = await start_engine(plan, policy)
        if isinstance(self._engine, VllmEngine) and plan.config.engine.vllm.colocate:
            self._colocated = self._engine
        try:
            yield self._engine
        finally:
            await self._engine.close()

    @asynccontextmanager
    async def learner(self, plan: Plan, policy: Policy) -> AsyncIterator[LeadLearner]:
        """The learner, which shards the policy's model. It is made in the room of an engine that sleeps."""
        await self.make_room()
        with leading(plan.config, plan.source, policy) as self._learner:
            yield self._learner

    async def make_room(self) -> None:
        """A colocated engine sleeps until `publish`."""
        if self._colocated is not None:
            await self._colocated.sleep()

    async def publish(self, version: int) -> None:
        """Gather the weights here and copy them into the engine."""
        assert self._engine is not None  # noqa: S101 - nothing is published before there are both
        assert self._learner is not None  # noqa: S101
        weights = self._learner.weights()
        if self._colocated is not None:
            await self._colocated.wake()
        await self._engine.push(weights, version)
