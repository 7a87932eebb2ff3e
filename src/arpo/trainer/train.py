"""The training loop of ARPO: rollouts → replay → advantages → GRPO step → new weights → checkpoint.

Read `train` from top to bottom; everything else here keeps its records.
Invariant: whenever the process is killed, starting it again goes on from the newest checkpoint as if it had not been.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from arpo.checkpoints import folders
from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.evaluation.report import in_words
from arpo.evaluation.result import EvaluationResult
from arpo.learner.checkpoint import read_state
from arpo.learner.checkpointer import Checkpointer
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.replay import ReplayBuffer, ReplayError
from arpo.replay.dataset import Dataset
from arpo.replay.intake import take_in
from arpo.replay.tokenizer import tokenizer_fingerprint
from arpo.rollout.collect import Rollouts
from arpo.rollout.groups import Batch, Group
from arpo.rollout.usage import Utilisation
from arpo.telemetry import names
from arpo.trainer.again import replacing_lost_ranks
from arpo.trainer.assembly import Assembly, assemble
from arpo.trainer.board import Board
from arpo.trainer.checkpoints import evaluated, newest_to_resume
from arpo.trainer.ending import Ending
from arpo.trainer.exported import export_step
from arpo.trainer.launch import RunLearner
from arpo.trainer.metrics import batch_record, evaluation_metrics, step_metrics, warnings
from arpo.trainer.process import rss_gib
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.saving import Saver
from arpo.trainer.schedule import Schedule, ended_episodes, pending_groups
from arpo.trainer.state import Progress, WarmStart
from arpo.trainer.stop import Stop
from arpo.trainer.summary import Summary
from arpo.trainer.trackers import Trackers, TrackerStart, tracking
from arpo.trainer.version import CodeVersion, code_version
from arpo.trainer.warm_start import imitate, read_demonstrations, record_demonstrations
from arpo.trainer.watching import keep_fault, run_evaluation, watching
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
        version = code_version()
        newest, damaged = open_run(config, run, reporter, version)
        ending = Ending(config, run, version, started, learner_restarts)
        async with (
            ending.known(stop),
            tracking(config.run.trackers, tracker_start(config, run, newest), reporter.say) as trackers,
            learning(config, run, newest, reporter, trackers) as trainer,
            reporter.watching(trainer.board.status),
        ):
            progress = trainer.saver.restore(newest) if newest else Progress()
            progress.damaged_checkpoints += damaged
            trainer.board.progress = ending.progress = progress
            ending.parts = trainer.parts
            async with trainer.saver.until_left(stop):
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

                async with trainer.rollouts(progress) as rollouts:
                    while progress.step < config.trainer.max_steps:
                        clock = time.monotonic()
                        step = progress.step + 1
                        with trainer.board.step(step, progress.policy_version, run.attempt):
                            batch = await trainer.batch(rollouts, step)
                            collected = time.monotonic()
                            with stop.held_off():
                                learned = await trainer.learn(batch, step, progress.policy_version)
                                progress.step, progress.policy_version = step, progress.policy_version + 1
                                await trainer.publish(progress)
                                rollouts.pushed(progress.policy_version)

                                seconds = {
                                    "rollout": collected - clock,
                                    "learn": time.monotonic() - collected,
                                }
                                trainer.record(
                                    progress, batch, learned, seconds, rollouts.usage.utilisation()
                                )
                                trainer.saver.finished(progress)
                                if trainer.saves_after(step):
                                    await trainer.save()
                        await trainer.evaluate_if_due(progress, rollouts)

                if config.trainer.eval_after:
                    ending.after = await trainer.evaluate(progress, "after")
            return ending.finished(progress)


async def warm_start(config: Config, reporter: Reporter) -> tuple[WarmStart, Checkpoint]:
    """Only the warm start; its checkpoint (step 0) is where `train` of the same run goes on."""
    with RunDirectory(config) as run:
        newest = folders.latest(run.checkpoints)
        if newest is not None:
            raise ConfigError(
                f"{run.root} has {newest.path.name} already; fix: choose another run.name, or go on with `arpo train`"
            )
        open_run(config, run, reporter, code_version())
        async with learning(config, run, None, reporter, Trackers()) as trainer, trainer.saver.until_left():
            result = await trainer.warm_start(Progress())
        saved = folders.latest(run.checkpoints)
        assert saved is not None  # noqa: S101 - a save that failed has raised
        return result, saved


def open_run(
    config: Config, run: RunDirectory, reporter: Reporter, version: CodeVersion
) -> tuple[Checkpoint | None, int]:
    """Make the run directory ready to go on, or to begin.

    Returns the newest sound checkpoint, if there is any, and how many newer ones are damaged. Raises ConfigError when there
    is one and `run.resume` is off.
    """
    if not config.run.resume and folders.latest(run.checkpoints) is not None:
        raise ConfigError(
            f"{run.root} holds a run already; fix: choose another run.name, or set run.resume=true"
        )
    newest, damaged = newest_to_resume(run.root, reporter.say)
    step = newest.step if newest else 0
    for difference in [*run.keep_config(config, step), *run.keep_version(version, step)]:
        reporter.say(f"changed since this run's last start: {difference}")
    attempt = run.begin_attempt(step)
    if attempt > 1:
        reporter.say(f"attempt {attempt} of this run")
    in_flight = pending_groups(read_state(newest)["schedule"], config) if newest else []
    run.forget_after(newest.step if newest else -1, ended_episodes(in_flight))
    return newest, damaged


def tracker_start(config: Config, run: RunDirectory, newest: Checkpoint | None) -> TrackerStart:
    """What the trackers of a run that has been opened begin with."""
    step = newest.step if newest else 0
    standing = run.standing(step) if newest else {}
    return TrackerStart(run.root, config.run.name, config.model_dump(mode="json"), step, standing)


@asynccontextmanager
async def learning(
    config: Config, run: RunDirectory, saved: Checkpoint | None, reporter: Reporter, trackers: Trackers
) -> AsyncIterator[Trainer]:
    """Everything that training needs: desktops, engine, and the learner on all its ranks."""
    async with (
        assemble(config, run, saved, reporter) as parts,
        parts.launcher.learner(parts.plan, parts.policy) as learner,
    ):
        yield Trainer(parts, learner, trackers)


class Trainer:
    """The learner's side of a run: learner, replay buffer, task cursor, and who saves them."""

    def __init__(self, parts: Assembly, learner: RunLearner, trackers: Trackers) -> None:
        config = parts.config
        self.parts = parts
        self.trackers = trackers
        self.config = config
        self.replay = ReplayBuffer(config.replay, parts.run.replay.rows)
        self.tokenizer = tokenizer_fingerprint(parts.policy.tokenizer.backend_tokenizer.to_str())
        parts.run.replay.record_tokenizer(self.tokenizer)
        self.rng = random.Random(f"{config.run.seed}/replay")  # noqa: S311 - not a secret
        self.learner = learner
        self.schedule = Schedule(config, parts.tasks, parts.run.trajectories, self.teaches)
        self._collecting = 0
        self.board = Board(config, parts.usages)
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
            schedule=self.schedule,
            rng=self.rng,
            say=parts.reporter.say,
        )

    async def warm_start(self, progress: Progress) -> WarmStart:
        """Imitate the demonstrations of the training tasks, or those of a data set, and publish a checkpoint."""
        parts, config = self.parts, self.config
        with self.board.phase("imitates"):
            demonstrations, screenshots = await self._demonstrations(progress)
            await parts.launcher.make_room()
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

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        section = self.config.trainer
        return step % section.checkpoint_every == 0 or step == section.max_steps

    async def save(self) -> None:
        """Begin a checkpoint of what has finished, and remove what is not needed any more. Raises CheckpointError."""
        with self.board.phase("saves", names.CHECKPOINT):
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
        with self.board.phase("publishes weights", names.PUSH) as span:
            span.set(names.POLICY_VERSION, progress.policy_version)
            await self.parts.launcher.publish(progress.policy_version)

    @asynccontextmanager
    async def rollouts(self, progress: Progress) -> AsyncIterator[Rollouts]:
        """The desktops at work, from where the run stands; the trajectories are kept as they end."""
        parts = self.parts
        self._collecting = progress.step + 1

        def keep(trajectory: Trajectory) -> None:
            parts.run.trajectories.append(self._collecting, trajectory)
            keep_fault(parts.run, progress, self._collecting, trajectory)
            self.board.ended(trajectory)

        collector = parts.collector(temperature=self.config.engine.temperature, on_trajectory=keep)
        left = self.config.trainer.max_steps - progress.step
        async with collector.running(self.schedule.begin(progress.policy_version, left)) as rollouts:
            self.board.rollouts = rollouts
            yield rollouts

    async def batch(self, rollouts: Rollouts, step: int) -> Batch:
        """The groups of a step. Raises ArpoError when not one episode could be completed."""
        config = self.config
        total = config.trainer.tasks_per_step * config.rollout.group_size
        with self.board.phase("waits for episodes", names.COLLECT):
            batch = await rollouts.batch()
        self._collecting = step + 1
        self.board.taken()
        if not any(group.trajectories for group in batch.groups):
            raise ArpoError(
                f"step {step}: none of {total} episodes could be completed, retries included "
                f"(reasons: {self.parts.run.root}/faults.jsonl); started again, the run goes on from its newest checkpoint"
            )
        return batch

    def teaches(self, group: Group) -> bool:
        """Whether the learner can tell good from bad in a closed group: rewards differ, or replay will see to that."""
        rewards = {t.reward(self.config.learner.format_coef) for t in group.trajectories}
        return len(rewards) > 1 or self.replay.injects(group.trajectories)

    async def learn(self, batch: Batch, step: int, version: int) -> dict[str, float]:
        """Apply the replay rule to the groups, then take the learner's step; returns its metrics.

        version: of the policy that it steps from.
        """
        self.saver.begun()
        with self.board.phase("replays", names.REPLAY) as span:
            members = [
                self.replay.close_group(group.trajectories, self.rng, step=step)
                for group in batch.groups
                if group.trajectories
            ]
            for group in batch.spare:
                self.replay.store(group.trajectories, step=step)
            span.set(names.INJECTED, sum(member.replayed for group in members for member in group))
        self.board.learns_from(members)
        self.parts.run.batch(batch_record(step, members, batch))
        with self.board.phase("learns", names.LEARN):
            await self.parts.launcher.make_room()
            images = self.parts.run.screenshots.get
            return await asyncio.to_thread(self.learner.step, members, images, version)

    async def evaluate(self, progress: Progress, label: str) -> EvaluationResult:
        """Evaluate the engine's policy on the evaluation tasks."""
        with self.board.phase(f"waits for evaluation {label}"):
            result = await run_evaluation(self.parts, progress, label)
        self.trackers.log(progress.step, evaluation_metrics(result))
        self.parts.reporter.say(f"evaluation {label}: {in_words(result)}")
        return result

    async def evaluate_if_due(self, progress: Progress, rollouts: Rollouts | None = None) -> None:
        """The evaluation that `eval_every` asks for here, unless it was made before the run was interrupted.

        rollouts: that have the desktops, and make room for it.
        """
        section, label = self.config.trainer, f"step-{progress.step:06d}"
        if not section.eval_every or not progress.step or progress.step % section.eval_every:
            return
        followed_by_after = section.eval_after and progress.step >= section.max_steps
        if not followed_by_after and not self.parts.run.evaluation(label).exists():
            async with rollouts.paused() if rollouts else nullcontext():
                await self.evaluate(progress, label)

    def record(
        self,
        progress: Progress,
        batch: Batch,
        learned: dict[str, float],
        seconds: dict[str, float],
        utilisation: Utilisation,
    ) -> None:
        """One line of `metrics.jsonl`, and one for the person watching."""
        row = step_metrics(
            self.config,
            progress,
            batch,
            self.replay.metrics(progress.policy_version),
            learned,
            seconds,
            utilisation,
            rss_gib(),
        )
        row["attempt"] = self.parts.run.attempt
        row["engine/restarts"] = self.parts.launcher.engine_restarts
        progress.add(row)
        self.parts.run.metrics(row)
        self.trackers.log(progress.step, row)
        export_step(row)
        self.parts.reporter.say(
            f"step {progress.step}/{self.config.trainer.max_steps}: score {row['rollout/score']:.2f}  "
            f"replayed {row['replay/injected']:.0f}  grad norm {row['learner/grad_norm']:.3g}  "
            f"invalid {row['rollout/retries'] + row['rollout/lost']:.0f}  {row['seconds/step']:.1f} s"
        )
        for warning in warnings(row, self.config):
            self.parts.reporter.say(f"warning: {warning}")
