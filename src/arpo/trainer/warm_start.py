"""Warm start: record the tasks' demonstrations on the run's own desktops, or read a data set, then imitate them.

Invariant: a recorded demonstration is imitated only if it scored 1.0 on the desktop it is meant for, one of a data set
only if its score is a success.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from arpo.agent.profiles import Profile
from arpo.config.sections import ImitationSection
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.replay.dataset import Dataset
from arpo.rollout.collect import Collector
from arpo.rollout.demonstration import ScriptedEngine
from arpo.rollout.row import Encoder
from arpo.rollout.scheduler import Scheduler
from arpo.tasks.demonstration import Demonstration
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite
from arpo.trainer.launch import RunLearner
from arpo.trainer.progress import Reporter
from arpo.trainer.state import WarmStart
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore


async def record_demonstrations(
    suite: Suite,
    tasks: Sequence[Task],
    collector: Collector,
    encoder: Encoder,
    profile: Profile,
    *,
    screen: tuple[int, int],
    max_retries: int,
) -> list[Trajectory]:
    """Play every task's demonstration as an episode with the collector's rules.

    Raises ConfigError when one is absent, ArpoError when one cannot be recorded or does not score 1.0.
    """
    pairs = [(task, _demonstration(suite, task)) for task in tasks]
    gate = asyncio.Semaphore(collector.concurrency)

    async def record(task: Task, demonstration: Demonstration) -> Trajectory:
        attempts: list[Trajectory] = []

        def keep(trajectory: Trajectory) -> None:
            scripted = trajectory.model_copy(update={"sampler": "script"})
            attempts.append(scripted)
            collector.on_trajectory(scripted)

        engine = ScriptedEngine(demonstration, encoder, profile, screen)
        scheduler = Scheduler.of_set([task], label="demo", group_size=1, max_retries=max_retries, seed=0)
        async with gate:
            await replace(collector, engine=engine, concurrency=1, on_trajectory=keep).collect(scheduler)
        return attempts[-1]

    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(record(*pair)) for pair in pairs]
    trajectories = [job.result() for job in jobs]
    for trajectory in trajectories:
        name = f"{trajectory.domain}/{trajectory.task_id}"
        if trajectory.problem is not None:
            raise ArpoError(f"the demonstration of {name} could not be recorded: {trajectory.problem.detail}")
        if trajectory.score != 1.0:
            raise ArpoError(
                f"the demonstration of {name} scored {trajectory.score}, not 1.0: nothing to imitate"
            )
    return trajectories


def _demonstration(suite: Suite, task: Task) -> Demonstration:
    demonstration = suite.demonstration(task)
    if demonstration is None:
        raise ConfigError(
            f"task {task.domain}/{task.id} has no demonstration to imitate; "
            f"fix: add demos/{task.domain}/{task.id}.json or set imitation.enabled=false"
        )
    return demonstration


def read_demonstrations(dataset: Dataset, *, tokenizer: str, success_above: float) -> list[Trajectory]:
    """The trajectories of a data set. Raises ConfigError when it is damaged or of another tokenizer."""
    if dataset.manifest.tokenizer != tokenizer:
        raise ConfigError(
            f"imitation.dataset={dataset.root} has token ids of another tokenizer than the policy's; "
            "fix: use the model.path it was made with (for `tiny`: the same tasks and seed, and imitation.enabled=true)"
        )
    return [item.trajectory for item in dataset.items(success_above)]


async def imitate(
    learner: RunLearner,
    demonstrations: Sequence[Trajectory],
    screenshots: ScreenshotStore,
    section: ImitationSection,
    *,
    seed: int,
    reporter: Reporter,
) -> WarmStart:
    """Imitate until the mean probability of sampling a whole demonstration reaches the target, or the steps are used up."""
    started = time.monotonic()
    rng = random.Random(f"{seed}/imitation")  # noqa: S311 - not a secret

    async def probability() -> float:
        logprobs = await asyncio.to_thread(learner.sequence_logprobs, demonstrations, screenshots.get)
        return fmean(math.exp(value) for value in logprobs)

    before = after = await probability()
    tried = applied = 0
    with reporter.count("imitating", section.steps) as counter:
        while tried < section.steps and (after < section.target_prob or section.target_prob >= 1):
            batch = rng.sample(list(demonstrations), min(section.batch, len(demonstrations)))
            metrics = await asyncio.to_thread(learner.imitate_step, batch, screenshots.get, section.lr)
            tried += 1
            applied += int(metrics["imitation/applied"])
            if tried % section.check_every == 0 or tried == section.steps:
                after = await probability()
            counter.update(tried, f"loss {metrics['imitation/loss']:.3f}, whole demonstrations {after:.2f}")
    return WarmStart(
        demonstrations=len(demonstrations),
        steps=applied,
        probability_before=before,
        probability_after=after,
        seconds=time.monotonic() - started,
        dataset=str(section.dataset) if section.dataset else None,
    )
