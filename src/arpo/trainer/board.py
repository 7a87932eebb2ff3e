"""Collects what the parts of a training run know, for whoever watches it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

from arpo.config.model import Config
from arpo.rollout.collect import Rollouts
from arpo.rollout.usage import Usage
from arpo.telemetry import names, tracing
from arpo.telemetry.names import SpanName
from arpo.telemetry.tracing import Span
from arpo.trainer.exported import export_episode
from arpo.trainer.process import rss_gib
from arpo.trainer.state import Progress
from arpo.trainer.status import Status, eta_s
from arpo.trajectory import GroupMember, Trajectory

_JUDGED = 64
"""The latest episodes whose share of successes is shown."""


class Board:
    """Told by the trainer what happens; answers with a `Status` at any moment.

    usages: of everything that runs episodes now, evaluations too. progress: of the run, once there is one.
    """

    def __init__(self, config: Config, usages: Set[Usage]) -> None:
        self._config = config
        self._usages = usages
        self._phases = ["starts"]
        self._judged: deque[bool] = deque(maxlen=_JUDGED)
        self._episodes = 0
        self._step_began = time.monotonic()
        self._span = Span()
        self.progress = Progress()
        self.rollouts: Rollouts | None = None

    @contextmanager
    def phase(self, name: str, span: SpanName | None = None) -> Iterator[Span]:
        """What the learner's side does inside. span: what that is in the trace of the step in hand, if there is one."""
        self._phases.append(name)
        try:
            with tracing.span(span) if span else Span() as traced:
                yield traced
        finally:
            self._phases.pop()

    def ended(self, trajectory: Trajectory) -> None:
        """An episode of training ended."""
        export_episode(trajectory, self._config.replay.success_above)
        if trajectory.valid:
            self._episodes += 1
            self._judged.append(trajectory.succeeded(self._config.replay.success_above))

    def taken(self) -> None:
        """A step has its batch: from now on episodes count for the next one."""
        self._episodes = 0

    @contextmanager
    def step(self, number: int, version: int, attempt: int) -> Iterator[Span]:
        """A step is made inside, as a trace of its own. version: of the policy that it steps from. attempt: of the run."""
        self._step_began = time.monotonic()
        about: dict[names.Attribute, names.Value] = {
            names.TRAIN_STEP_NUMBER: number,
            names.POLICY_VERSION: version,
            names.RUN: self._config.run.name,
            names.ATTEMPT: attempt,
        }
        with tracing.span(names.TRAIN_STEP, about) as self._span:
            yield self._span

    def learns_from(self, members: Sequence[Sequence[GroupMember]]) -> None:
        """The step in hand learns from these groups: its trace points to their episodes."""
        learned = [member.trajectory for group in members for member in group]
        self._span.set(names.EPISODES, len(learned))
        tracing.link_all(self._span, [(one.trace_id, one.span_id) for one in learned])

    def status(self) -> Status:
        """Now."""
        trainer, progress, rollouts = self._config.trainer, self.progress, self.rollouts
        rows = progress.per_step
        last = rows[-1] if rows else None
        desktops = self._config.env.desktops
        return Status(
            phase=self._phases[-1],
            step=min(progress.step + 1, trainer.max_steps),
            steps=trainer.max_steps,
            episodes=self._episodes,
            episodes_a_step=trainer.tasks_per_step * self._config.rollout.group_size,
            success=sum(self._judged) / len(self._judged) if self._judged else None,
            judged=len(self._judged),
            busy=sum(usage.episodes for usage in self._usages),
            desktops=desktops,
            limit=rollouts.limit if rollouts else desktops,
            requests=sum(usage.requests for usage in self._usages),
            engine=rollouts.usage.so_far().engine if rollouts else None,
            policy_version=progress.policy_version,
            staleness=(last["rollout/staleness_mean"], last["rollout/staleness_max"]) if last else None,
            faults=progress.faults.total(),
            rss_gib=rss_gib(),
            eta_s=eta_s(rows, trainer.max_steps, time.monotonic() - self._step_began),
        )
