"""The async shell around the scheduler: as many episodes at once as there are desktops, whatever the learner does.

Invariant: every episode that the scheduler hands out is a task here, and every such task tells the scheduler how it ended,
once. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from arpo.protocol.problems import ProblemCode
from arpo.rollout.concurrency import Concurrency
from arpo.rollout.dialogue import Reply
from arpo.rollout.engines.base import AnyEngine
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.rollout.groups import Batch, Episode, Group
from arpo.rollout.scheduler import Scheduler
from arpo.rollout.usage import Usage
from arpo.telemetry import tracing
from arpo.trajectory import Trajectory

_UNREACHABLE = frozenset({ProblemCode.BACKEND_LOST, ProblemCode.LEASE_LOST})
"""How episodes end that an outage has ended: without an answer, or with a session that fell silent for too long."""


@dataclass(frozen=True)
class Collector:
    """What is needed to run a scheduler's episodes.

    concurrency: episodes at once; adaptive: fewer while the engine does not keep up.
    on_trajectory: called once for every episode that ended, valid or not, in the order in which they ended.
    after_fault: awaited after an invalid episode and before anyone may run it again: the place to wait until a lost
    env-server is back, so that the retries are not spent on a dead one.
    usages: has the usage of everything that runs episodes now, this collector's among them.
    """

    runner: EpisodeRunner
    engine: AnyEngine
    rules: EpisodeRules
    concurrency: int
    on_trajectory: Callable[[Trajectory], None]
    after_fault: Callable[[], Awaitable[object]]
    adaptive: bool = False
    usages: set[Usage] = field(default_factory=set)

    async def collect(self, scheduler: Scheduler) -> list[Group]:
        """Run every episode of a scheduler that has one batch (`Scheduler.of_set`); returns its groups, all closed."""
        async with self.running(scheduler) as rollouts:
            return (await rollouts.batch()).groups

    @asynccontextmanager
    async def running(self, scheduler: Scheduler) -> AsyncIterator[Rollouts]:
        """Episodes run inside, also while nobody waits for a batch; those that still run at the end are stopped.

        What is raised in one of them (a bug, or what `after_fault` raises) ends all and is raised here; in a group only if
        there was more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                rollouts = Rollouts(self, scheduler, tasks)
                self.usages.add(rollouts.usage)
                try:
                    with self.runner.contact.watched(rollouts.contact):
                        yield rollouts
                finally:
                    self.usages.discard(rollouts.usage)
                    rollouts.stop()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise


class Rollouts:
    """Running episodes; made by `Collector.running`. usage: how busy they keep desktops and engine."""

    def __init__(self, collector: Collector, scheduler: Scheduler, tasks: asyncio.TaskGroup) -> None:
        self._collector = collector
        self._scheduler = scheduler
        self._tasks = tasks
        self._concurrency = Concurrency(collector.concurrency, adaptive=collector.adaptive)
        self.usage = Usage(collector.concurrency)
        self._episodes: dict[str, asyncio.Task[None]] = {}
        self._withdrawn: set[str] = set()
        self._changed = asyncio.Event()
        self._held = False
        self._fill()

    @property
    def limit(self) -> int:
        """Episodes that may run at once now."""
        return self._concurrency.limit

    async def batch(self) -> Batch:
        """Wait for the next step's batch. It is taken: the scheduler does not know its groups any more."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            batch = self._scheduler.take(now)
            self._fill()
            if batch is not None:
                return batch
            overdue = self._scheduler.overdue_at(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if overdue is None else overdue - now):
                    await self._changed.wait()

    def pushed(self, version: int) -> None:
        """The engine has a newer policy."""
        self._scheduler.pushed(version)
        self._fill()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """The desktops are somebody else's inside: waits for the episodes that run, and begins none."""
        self._held = True
        try:
            while self._episodes:
                self._changed.clear()
                await self._changed.wait()
            yield
        finally:
            self._held = False
        self._fill()

    def stop(self) -> None:
        """End all episodes; for good."""
        self._held = True
        for task in self._episodes.values():
            task.cancel()

    def _fill(self) -> None:
        """Stop what the scheduler has withdrawn, and begin what it has for free desktops."""
        for episode_id in self._scheduler.withdrawals():
            self._withdrawn.add(episode_id)
            self._episodes[episode_id].cancel()
        while not self._held and len(self._episodes) < self._concurrency.limit:
            episode = self._scheduler.next(time.monotonic())
            if episode is None:
                break
            self.usage.episode(+1)
            # an episode is a trace of its own, and no part of the step that happens to begin it
            self._episodes[episode.id] = self._tasks.create_task(
                self._run(episode), context=tracing.detached()
            )

    async def _run(self, episode: Episode) -> None:
        collector = self._collector
        watch, begun = _Watch(self, episode.id), time.monotonic()
        try:
            trajectory = await collector.runner.run(episode, collector.engine, collector.rules, watch)
            problem = trajectory.problem
            outage = (
                problem is not None
                and problem.code in _UNREACHABLE
                and collector.runner.contact.outage_since(begun)
            )
            collector.on_trajectory(trajectory)
            if not trajectory.valid:
                await collector.after_fault()
            self._scheduler.ended(trajectory, outage=outage)
        except asyncio.CancelledError:
            if episode.id not in self._withdrawn:
                raise
            self._scheduler.withdrawn(episode.id)
        finally:
            self._withdrawn.discard(episode.id)
            del self._episodes[episode.id]
            self.usage.episode(-1)
            self._changed.set()
        self._fill()

    def contact(self, lost: bool) -> None:
        """Contact with the env-server is lost, or regained."""
        if lost:
            self._scheduler.away(time.monotonic())
        else:
            self._scheduler.back(time.monotonic())
        self._changed.set()

    def began(self, episode_id: str) -> None:
        """An episode's first token is asked for."""
        self._scheduler.began(episode_id)

    def asked(self, episode_id: str) -> None:
        """An episode waits for the engine."""
        self._scheduler.asked(episode_id, time.monotonic())

    def answered(self, episode_id: str) -> None:
        """It has its reply."""
        self._scheduler.answered(episode_id, time.monotonic())

    def replied(self, reply: Reply, seconds: float) -> None:
        """An episode has a reply."""
        self._concurrency.replied(reply.queued_s, seconds)


class _Watch:
    """Awaits the replies of one episode and counts them (`arpo.rollout.episode.Watch`)."""

    def __init__(self, rollouts: Rollouts, episode_id: str) -> None:
        self._rollouts = rollouts
        self._episode_id = episode_id
        self._began = False

    async def __call__(self, reply: Awaitable[Reply]) -> Reply:
        if not self._began:
            self._began = True
            self._rollouts.began(self._episode_id)
        usage, started = self._rollouts.usage, time.monotonic()
        usage.request(+1)
        self._rollouts.asked(self._episode_id)
        try:
            replied = await reply
        finally:
            usage.request(-1)
        self._rollouts.answered(self._episode_id)
        self._rollouts.replied(replied, time.monotonic() - started)
        return replied
