"""The training loop of ARPO: rollouts → replay → advantages → GRPO step → new weights → checkpoint.

Read `train` from top to bottom; everything else here keeps its records.
Invariant: whenever the process is killed, starting it again goes on from the newest checkpoint as if it had not been.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from arpo.checkpoints import folders
from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.learner.checkpointer import Checkpointer
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.replay import ReplayBuffer, ReplayError
from arpo.replay.dataset import Dataset
from arpo.replay.intake import take_in
from arpo.replay.tokenizer import tokenizer_fingerprint
from arpo.rollout.evaluation import EvaluationResult
from arpo.rollout.scheduler import Group, GroupScheduler
from arpo.tasks.model import Task
from arpo.trainer.again import replacing_lost_ranks
from arpo.trainer.assembly import Assembly, assemble
from arpo.trainer.checkpoints import evaluated, newest_to_resume
from arpo.trainer.cursor import TaskCursor
from arpo.trainer.launch import RunLearner
from arpo.trainer.metrics import step_metrics, warnings
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.saving import Saver
from arpo.trainer.state import Progress, WarmStart
from arpo.trainer.stop import Stop
from arpo.trainer.summary import Summary, missing_stages
from arpo.trainer.warm_start import imitate, read_demonstrations, record_demonstrations
from arpo.trainer.watching import run_evaluation, watching
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore


async def train(config: Config, reporter: Reporter, stop: Stop | None = None) -> Summary:
    """Train as configured, from the newest complete checkpoint if the run directory has one.

    stop: with it a signal stops the run in order; what was not yet saved of the last finished step is saved then.
    Raises LearnerLost when ranks were lost more often than `launcher.max_restarts` allows.
    """
    stop = stop or Stop(config.trainer.grace_s)
    return await replacing_lost_ranks(
        lambda restarts: train_once(config, reporter, stop, restarts), config, stop, reporter.say
    )


async def train_once(config: Config, reporter: Reporter, stop: Stop, learner_restarts: int) -> Summary:
    """`train` until it is done, or a learner rank is lost (LearnerLost)."""
    started = time.monotonic()
    with RunDirectory(config) as run:
        newest, damaged = open_run(config, run, reporter)
        async with learning(config, run, newest, reporter) as trainer:
            async with trainer.saver.until_left(stop):
                progress = trainer.saver.restore(newest) if newest else Progress()
                progress.damaged_checkpoints += damaged
                await trainer.publish(progress)

                if config.imitation.enabled and progress.warm_start is None and progress.step == 0:
                    await trainer.warm_start(progress)
                    await trainer.publish(progress)
                await trainer.take_in(progress)
                if config.trainer.eval_before and progress.before is None and progress.step == 0:
                    progress.before = await trainer.evaluate(progress, "before")
                    trainer.saver.finished(progress)
                    await trainer.save()
                await trainer.evaluate_if_due(progress)

                while progress.step < config.trainer.max_steps:
                    clock = time.monotonic()
                    step = progress.step + 1
                    tasks = trainer.cursor.take(config.trainer.tasks_per_step)
                    groups = await trainer.rollout(progress, tasks, step)
                    collected = time.monotonic()
                    with stop.held_off():
                        learned = await trainer.learn(groups, step)
                        progress.step, progress.policy_version = step, progress.policy_version + 1
                        await trainer.publish(progress)

                        seconds = {"rollout": collected - clock, "learn": time.monotonic() - collected}
                        trainer.record(progress, groups, learned, seconds)
                        trainer.saver.finished(progress)
                        if step % config.trainer.checkpoint_every == 0 or step == config.trainer.max_steps:
                            await trainer.save()
                    await trainer.evaluate_if_due(progress)

                after = await trainer.evaluate(progress, "after") if config.trainer.eval_after else None
            return trainer.summarise(progress, after, time.monotonic() - started, learner_restarts)


async def warm_start(config: Config, reporter: Reporter) -> tuple[WarmStart, Checkpoint]:
    """Only the warm start; its checkpoint (step 0) is where `train` of the same run goes on."""
    with RunDirectory(config) as run:
        newest = folders.latest(run.checkpoints)
        if newest is not None:
            raise ConfigError(
                f"{run.root} has {newest.path.name} already; fix: choose another run.name, or go on with `arpo train`"
            )
        open_run(config, run, reporter)
        async with learning(config, run, None, reporter) as trainer, trainer.saver.until_left():
            result = await trainer.warm_start(Progress())
        saved = folders.latest(run.checkpoints)
        assert saved is not None  # noqa: S101 - a save that failed has raised
        return result, saved


def open_run(config: Config, run: RunDirectory, reporter: Reporter) -> tuple[Checkpoint | None, int]:
    """Make the run directory ready to go on, or to begin.

    Returns the newest sound checkpoint, if there is any, and how many newer ones are damaged. Raises ConfigError when there
    is one and `run.resume` is off.
    """
    if not config.run.resume and folders.latest(run.checkpoints) is not None:
        raise ConfigError(
            f"{run.root} holds a run already; fix: choose another run.name, or set run.resume=true"
        )
    newest, damaged = newest_to_resume(run.root, reporter.say)
    for difference in run.keep_config(config, newest.step if newest else 0):
        reporter.say(f"changed since this run's last start: {difference}")
    run.forget_after(newest.step if newest else -1)
    return newest, damaged


@asynccontextmanager
async def learning(
    config: Config, run: RunDirectory, saved: Checkpoint | None, reporter: Reporter
) -> AsyncIterator[Trainer]:
    """Everything that training needs: desktops, engine, and the learner on all its ranks."""
    async with (
        assemble(config, run, saved, reporter) as parts,
        parts.launcher.learner(parts.plan, parts.policy) as learner,
    ):
        yield Trainer(parts, learner)


class Trainer:
    """The learner's side of a run: learner, replay buffer, task cursor, and who saves them."""

    def __init__(self, parts: Assembly, learner: RunLearner) -> None:
        config = parts.config
        self.parts = parts
        self.config = config
        self.cursor = TaskCursor(parts.tasks, config.run.seed)
        self.replay = ReplayBuffer(config.replay, parts.run.replay.rows)
        self.tokenizer = tokenizer_fingerprint(parts.policy.tokenizer.backend_tokenizer.to_str())
        parts.run.replay.record_tokenizer(self.tokenizer)
        self.rng = random.Random(f"{config.run.seed}/replay")  # noqa: S311 - not a secret
        self.learner = learner
        root = parts.run.root
        self.saver = Saver(
            Checkpointer(
                parts.run.checkpoints,
                keep=config.trainer.keep_checkpoints,
                success=(lambda: evaluated(root)) if config.trainer.keep_best else None,
            ),
            learner=self.learner,
            replay=self.replay,
            policy=parts.policy,
            cursor=self.cursor,
            rng=self.rng,
            say=parts.reporter.say,
        )

    async def warm_start(self, progress: Progress) -> WarmStart:
        """Imitate the demonstrations of the training tasks, or those of a data set, and publish a checkpoint."""
        parts, config = self.parts, self.config
        demonstrations, screenshots = await self._demonstrations(progress)
        result = await imitate(
            self.learner,
            demonstrations,
            screenshots,
            config.imitation,
            seed=config.run.seed,
            reporter=parts.reporter,
        )
        parts.reporter.say(
            f"imitation: {result.steps} steps in {result.seconds:.0f} s; a whole demonstration is sampled with "
            f"probability {result.probability_after:.2f}"
        )
        progress.warm_start = result
        progress.policy_version += 1
        self.saver.finished(progress)
        await self.save()
        return result

    async def _demonstrations(self, progress: Progress) -> tuple[list[Trajectory], ScreenshotStore]:
        """What to imitate, and where its screenshots are."""
        parts, config = self.parts, self.config
        if config.imitation.dataset is not None:
            dataset = Dataset(config.imitation.dataset)
            read = read_demonstrations(
                dataset, tokenizer=self.tokenizer, success_above=config.replay.success_above
            )
            parts.reporter.say(f"{len(read)} demonstrations read from {dataset.root}")
            return read, dataset.screenshots

        def keep(trajectory: Trajectory) -> None:
            parts.run.trajectories.append(0, trajectory)
            count(trajectory)

        with watching(parts, progress, 0, "recording demonstrations", len(parts.tasks)) as count:
            demonstrations = await record_demonstrations(
                parts.suite,
                parts.tasks,
                parts.collector(temperature=config.engine.temperature, on_trajectory=keep),
                parts.policy.encoder,
                parts.profile,
                screen=(await parts.env.capacity()).screen,
                max_retries=config.rollout.max_retries,
            )
        parts.reporter.say(f"{len(demonstrations)} demonstrations recorded, each scored 1.0")
        return demonstrations, parts.run.screenshots

    async def take_in(self, progress: Progress) -> None:
        """Store what was imported into the run since the state that it goes on from."""
        run, section = self.parts.run, self.config.replay
        if section.rule == "off":
            return
        taken = await asyncio.to_thread(
            take_in,
            run.replay,
            self.replay,
            self.learner,
            run.screenshots.get,
            success_above=section.success_above,
            tokenizer=self.tokenizer,
            policy_version=progress.policy_version,
            step=progress.step,
        )
        if taken:
            self.parts.reporter.say(f"replay: {taken} imported trajectories taken in")

    async def save(self) -> None:
        """Begin a checkpoint of what has finished, and remove what is not needed any more. Raises CheckpointError."""
        await self.saver.finish()  # every index that counts is published now, or is what the buffer holds
        self._tidy()
        await self.saver.save()

    def _tidy(self) -> None:
        """Remove the replay rows that neither the buffer nor a checkpoint needs."""
        run = self.parts.run
        if self.config.replay.rule == "off":
            return
        try:
            run.replay.collect_garbage(self.replay.needed_rows(), run.checkpoints)
        except ReplayError as error:
            self.parts.reporter.say(str(error))

    async def publish(self, progress: Progress) -> None:
        """Give the engine the learner's weights as the policy version that the run is at."""
        await self.parts.launcher.publish(progress.policy_version)

    async def rollout(self, progress: Progress, tasks: Sequence[Task], step: int) -> list[Group]:
        """The groups of a step. Raises ArpoError when not one episode could be completed."""
        parts, config = self.parts, self.config
        scheduler = GroupScheduler(
            tasks,
            label=f"step-{step:06d}",
            group_size=config.rollout.group_size,
            max_retries=config.rollout.max_retries,
            seed=config.run.seed,
        )

        def keep(trajectory: Trajectory) -> None:
            parts.run.trajectories.append(step, trajectory)
            count(trajectory)

        title = f"step {step}/{config.trainer.max_steps} rollouts"
        with watching(parts, progress, step, title, scheduler.total) as count:
            groups = await parts.collector(temperature=config.engine.temperature, on_trajectory=keep).collect(
                scheduler
            )
        if not any(group.trajectories for group in groups):
            raise ArpoError(
                f"step {step}: none of {scheduler.total} episodes could be completed, retries included "
                f"(reasons: {parts.run.root}/faults.jsonl); started again, the run goes on from its newest checkpoint"
            )
        return groups

    async def learn(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Apply the replay rule to the groups, then take the learner's step; returns its metrics."""
        self.saver.begun()
        batch = [
            self.replay.close_group(group.trajectories, self.rng, step=step)
            for group in groups
            if group.trajectories
        ]
        return await asyncio.to_thread(self.learner.step, batch, self.parts.run.screenshots.get)

    async def evaluate(self, progress: Progress, label: str) -> EvaluationResult:
        """Evaluate the engine's policy on the evaluation tasks."""
        result = await run_evaluation(self.parts, progress, label)
        shown = "no valid episode" if result.success is None else f"{100 * result.success:.0f} % success"
        self.parts.reporter.say(f"evaluation {label}: {shown} over {result.episodes} episodes")
        return result

    async def evaluate_if_due(self, progress: Progress) -> None:
        """The evaluation that `eval_every` asks for here, unless it was made before the run was interrupted."""
        section, label = self.config.trainer, f"step-{progress.step:06d}"
        if not section.eval_every or not progress.step or progress.step % section.eval_every:
            return
        followed_by_after = section.eval_after and progress.step >= section.max_steps
        if not followed_by_after and not self.parts.run.evaluation(label).exists():
            await self.evaluate(progress, label)

    def record(
        self,
        progress: Progress,
        groups: Sequence[Group],
        learned: dict[str, float],
        seconds: dict[str, float],
    ) -> None:
        """One line of `metrics.jsonl`, and one for the person watching."""
        replay = self.replay.metrics(progress.policy_version)
        row = step_metrics(self.config, progress, groups, replay, learned, seconds)
        row["engine/restarts"] = self.parts.launcher.engine_restarts
        progress.per_step.append(row)
        self.parts.run.metrics(row)
        self.parts.reporter.say(
            f"step {progress.step}/{self.config.trainer.max_steps}: score {row['rollout/score']:.2f}  "
            f"replayed {row['replay/injected']:.0f}  grad norm {row['learner/grad_norm']:.3g}  "
            f"invalid {row['rollout/retries'] + row['rollout/lost']:.0f}  {row['seconds/step']:.1f} s"
        )
        for warning in warnings(row, self.config):
            self.parts.reporter.say(f"warning: {warning}")

    def summarise(
        self, progress: Progress, after: EvaluationResult | None, seconds: float, learner_restarts: int
    ) -> Summary:
        """Write and return `summary.json`."""
        parts = self.parts
        saved = folders.complete(parts.run.checkpoints)
        newest = saved[-1] if saved else None
        best = folders.best(saved, evaluated(parts.run.root))
        summary = Summary(
            run=str(parts.run.root),
            provider=parts.config.env.provider if parts.server else str(parts.config.env.url),
            steps=progress.step,
            policy_version=progress.policy_version,
            optimizer_steps=int(sum(row["learner/optimizer_steps"] for row in progress.per_step)),
            warm_start=progress.warm_start,
            before=progress.before,
            after=after,
            per_step=progress.per_step,
            faults=progress.faults,
            env_server_restarts=parts.server.restarts if parts.server else 0,
            engine_restarts=parts.launcher.engine_restarts,
            learner_restarts=learner_restarts,
            checkpoint=str(newest) if newest else None,
            best_checkpoint=str(best) if best else None,
            damaged_checkpoints=progress.damaged_checkpoints,
            config_changes=parts.run.config_changes(),
            seconds=seconds,
            missing=missing_stages(parts.config, progress, after, newest.step if newest else None),
        )
        parts.run.write("summary.json", summary.model_dump(mode="json"))
        return summary
