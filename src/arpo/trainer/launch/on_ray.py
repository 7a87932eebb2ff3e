"""Engine and learner as actors of a Ray cluster; this process, the driver, holds neither.

Invariant: weights go from ranks to the engines, straight or through Ray's object store, and never through the driver's
memory. Whatever ends the driver ends its actors: Ray ends those whose driver is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from arpo.config.model import Config
from arpo.policy.load import Policy
from arpo.rollout.engines.base import Engine, EngineError
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.cluster import Cluster
from arpo.trainer.launch.outgoing import sends
from arpo.trainer.launch.publication import Direct, Stored
from arpo.trainer.launch.ray_engines import RayEngine
from arpo.trainer.launch.ray_ranks import RayLearner
from arpo.trainer.progress import Reporter


class RayLauncher:
    """A `Launcher`. A lost engine is replaced without a word to the loop; a lost rank raises LearnerLost."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self._config = config
        self._reporter = reporter
        self._cluster = Cluster(config, reporter)
        self._engine: RayEngine | None = None
        self._learner: RayLearner | None = None
        self._direct: Direct | None = None

    async def __aenter__(self) -> Self:
        await self._cluster.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._cluster.__aexit__(*exc)

    @property
    def engine_restarts(self) -> int:
        """How often an engine actor was replaced."""
        return self._engine.restarts if self._engine else 0

    def policy(self, plan: Plan) -> Policy:
        """Without weights."""
        return plan.source.outline(plan.config)

    @asynccontextmanager
    async def engine(self, plan: Plan, policy: Policy) -> AsyncIterator[Engine]:
        """The engine actors as one engine."""
        async with RayEngine(self._cluster, plan, self._reporter.say) as self._engine:
            yield self._engine

    @asynccontextmanager
    async def learner(self, plan: Plan, policy: Policy) -> AsyncIterator[RayLearner]:
        """The rank actors as one learner. They start in the room of engines that sleep."""
        await self.make_room()
        run = (self._config.run.dir / self._config.run.name).absolute()
        self._learner = await asyncio.to_thread(RayLearner, self._cluster, plan, run)
        if sends(self._config):
            timeout_s = self._config.engine.vllm.push_timeout_s
            self._direct = Direct(
                self._learner, timeout_s, self._reporter.say, colocated=self._config.colocated
            )
        try:
            yield self._learner
        finally:
            self._learner.close()

    async def make_room(self) -> None:
        """Colocated engines sleep until `publish`; others have GPUs of their own."""
        if self._config.colocated:
            assert self._engine is not None  # noqa: S101 - nothing computes before there is one
            await self._engine.sleep()

    async def publish(self, version: int) -> None:
        """Ranks send the weights to the engines, or rank 0 puts them where every engine takes them from."""
        assert self._engine is not None  # noqa: S101 - nothing is published before there are both
        assert self._learner is not None  # noqa: S101
        if self._direct is None:
            stored = Stored(await asyncio.to_thread(self._learner.weights), version)
            await self._engine.publish(stored, version)
            return
        publication = await self._direct.hold(version)
        try:
            await self._engine.publish(publication, version)
        except EngineError:
            await publication.drop()
            raise
        await publication.keep()
