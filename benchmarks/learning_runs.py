"""Warm start and training runs of the learning benchmark, made of the trainer's own parts.

Invariants: every run starts from the same weights and takes the same number of episodes of the same tasks; arms differ
in their `ReplaySection` alone; a run depends on its arm, its seed and the settings, and on nothing else but rounding
(which requests the engine samples together is a matter of timing).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from learning_desktops import local_env
from learning_suite import SCREEN, Code, codes, turns
from safetensors.torch import save_file

from arpo.agent.profiles import get_profile
from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from arpo.policy.load import Policy, load_policy
from arpo.policy.tiny import build_tiny
from arpo.replay import ReplayBuffer, RowStore
from arpo.rollout.collect import Collector
from arpo.rollout.engines import Engine, Generation, Sampling
from arpo.rollout.engines.hf import HFEngine
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.rollout.groups import Group
from arpo.rollout.scheduler import Scheduler
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

if TYPE_CHECKING:
    import torch

PIXELS = 3_136  # 56 × 56: four image tokens a screenshot
PROFILE = get_profile("uitars-1.5", min_pixels=PIXELS, max_pixels=PIXELS, prompt="short")
TEMPERATURE = 1.0

ARMS = {
    "arpo": ReplaySection(rule="arpo", importance="truncated"),
    "arpo-no-importance": ReplaySection(rule="arpo", importance="none"),
    "grpo": ReplaySection(rule="off"),
}


@dataclass(frozen=True)
class Settings:
    """What all arms share.

    steps: training steps. group_size: episodes of each task in a step. lr: of AdamW. imitation_steps: at
    `imitation_lr`, then half as many at a tenth of it, so that no example is the last to be remembered. grad_clip: twice
    the usual gradient norm; one garbage token can have ten times as much.
    """

    steps: int
    group_size: int = 2
    lr: float = 3e-4
    imitation_steps: int = 240
    imitation_lr: float = 2e-3
    grad_clip: float = 0.1

    def learner(self, grad_clip: float) -> LearnerSection:
        """The learner's section."""
        return LearnerSection(lr=self.lr, grad_clip=grad_clip, max_row_tokens=4096)


class Reciter:
    """An engine that says prepared replies, turn by turn. Log-probs are 0: nothing is sampled."""

    policy_version = 0

    def __init__(self, replies: Sequence[list[int]]) -> None:
        self._replies = replies

    async def generate(
        self, prompt_ids: Sequence[int], images: Sequence[bytes], sampling: Sampling
    ) -> Generation:
        """A row holds a screenshot for every turn, so their number says which reply is next."""
        ids = self._replies[len(images) - 1]
        return Generation(ids, [0.0] * len(ids), policy_version=0, stopped=True)

    async def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """There are no weights."""

    async def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class Workshop:
    """A policy and desktops for it."""

    policy: Policy
    runner: EpisodeRunner
    screenshots: ScreenshotStore

    async def play(self, code: Code, keys: str) -> Trajectory:
        """The episode in which some keys are entered as a task's answer. Raises RuntimeError when it is mis-scored."""
        engine = Reciter([self.policy.encoder.encode_reply(text) for text in said(keys)])
        scheduler = Scheduler.of_set([code.task()], label=keys, group_size=1, max_retries=0, seed=0)
        (group,) = await collect(self.runner, engine, scheduler, 1)
        (trajectory,) = group.trajectories
        if trajectory.score != float(keys == code.keys):
            raise RuntimeError(f"{keys} as the code of {code.name} scored {trajectory.score}")
        return trajectory


@asynccontextmanager
async def workshop(model: Path, folder: Path, desktops: int) -> AsyncIterator[Workshop]:
    """Load the policy in `model` and start desktops; pictures are kept in `folder`."""
    policy = load_policy(model, device="cpu", min_pixels=PIXELS, max_pixels=PIXELS)
    screenshots = ScreenshotStore(folder / "screenshots")
    async with local_env(desktops) as env:
        yield Workshop(policy, EpisodeRunner(env, policy.encoder, PROFILE, screenshots), screenshots)


class AsShown:
    """The probability that a learner's policy enters the right code of each task in the way that the warm start showed.

    Exact, since the desktops are deterministic: it is the probability of sampling that episode's tokens. A lower bound of
    success and close to it at the start; later a run may succeed otherwise (without the closing `finished()`, say).
    """

    def __init__(self, learner: Learner, right: Sequence[Trajectory], images: Callable[[str], bytes]) -> None:
        self._learner = learner
        self._right = right
        self._images = images

    def __call__(self) -> list[float]:
        """One probability a task."""
        return [math.exp(p) for p in self._learner.sequence_logprobs(self._right, self._images)]


def said(keys: str) -> list[str]:
    """What the policy says, turn by turn, to enter some keys."""
    return [PROFILE.render("", actions, SCREEN) for actions in turns(keys)]


async def collect(runner: EpisodeRunner, engine: Engine, scheduler: Scheduler, desktops: int) -> list[Group]:
    """Run a scheduler's episodes at once. Raises RuntimeError for an invalid one: nothing may fail in here."""

    def check(trajectory: Trajectory) -> None:
        if trajectory.problem is not None:
            raise RuntimeError(f"episode {trajectory.episode_id}: {trajectory.problem}")

    longest = max(len(code.keys) for code in codes())
    collector = Collector(
        runner=runner,
        engine=engine,
        rules=EpisodeRules(
            max_steps=longest,
            max_format_errors=1,
            sampling=Sampling(temperature=TEMPERATURE, max_new_tokens=24),
        ),
        concurrency=desktops,
        on_trajectory=check,
        after_fault=asyncio.Event().wait,
    )
    return await collector.collect(scheduler)


async def warm_start(folder: Path, settings: Settings, say: Callable[[str], None]) -> Path:
    """The folder of the warm-started policy; made at the first call for these settings."""
    done = folder / "warm-start"
    if done.is_dir():
        return done
    blank = folder / "blank"
    corpus = [PROFILE.system(), *(PROFILE.user_prompt(code.task().instruction) for code in codes())]
    corpus += [text for code in codes() for keys in code.plausible() for text in said(keys)]
    build_tiny(blank, corpus, 0)
    async with workshop(blank, folder, 1) as shop:
        learner = Learner(
            shop.policy, settings.learner(grad_clip=1.0), ReplaySection(), temperature=TEMPERATURE, seed=0
        )
        played = [[await shop.play(code, keys) for keys in code.plausible()] for code in codes()]
        as_shown = AsShown(learner, [of_task[0] for of_task in played], shop.screenshots.get)
        rng = random.Random(0)
        for step in range(settings.imitation_steps * 3 // 2):
            lr = settings.imitation_lr if step < settings.imitation_steps else settings.imitation_lr / 10
            batch = [rng.choice(of_task) for of_task in played]
            metrics = learner.imitate_step(batch, shop.screenshots.get, lr)
            if step % 20 == 0:
                say(
                    f"warm start: step {step}, loss {metrics['imitation/loss']:.3f}, "
                    f"right codes as shown {fmean(as_shown()):.3f}"
                )
        scratch = folder / "warm-start.part"
        shop.policy.save_blueprint(scratch)
        weights = {name: tensor.contiguous() for name, tensor in learner.weights().items()}
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        scratch.rename(done)
    return done


async def train(
    model: Path, folder: Path, arm: str, seed: int, settings: Settings, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One run; returns a record for the start and for every step."""
    replay_section = ARMS[arm]
    tasks = [code.task() for code in codes()]
    async with workshop(model, folder, settings.group_size * len(tasks)) as shop:
        # the engine copies the model before the learner takes it over
        engine = HFEngine(shop.policy, settings.group_size * len(tasks))
        learner = Learner(
            shop.policy,
            settings.learner(settings.grad_clip),
            replay_section,
            temperature=TEMPERATURE,
            seed=seed,
        )
        right = [await shop.play(code, code.keys) for code in codes()]
        as_shown = AsShown(learner, right, shop.screenshots.get)
        rows = RowStore(folder / "rows" / f"{arm}-{seed}")
        replay, rng = ReplayBuffer(replay_section, rows), random.Random(f"{seed}/replay")
        records: list[dict[str, Any]] = [{"step": 0, "as_shown": as_shown()}]
        for step in range(1, settings.steps + 1):
            started = time.monotonic()
            scheduler = Scheduler.of_set(
                tasks, label=f"step-{step}", group_size=settings.group_size, max_retries=0, seed=seed
            )
            groups = await collect(shop.runner, engine, scheduler, settings.group_size * len(tasks))
            batch = [replay.close_group(group.trajectories, rng) for group in groups]
            learned = await asyncio.to_thread(learner.step, batch, shop.screenshots.get)
            await engine.push(learner.weights(), step)
            episodes = [t for group in groups for t in group.trajectories]
            records.append(
                {
                    "step": step,
                    "as_shown": as_shown(),
                    "success": fmean(float(t.score == 1.0) for t in episodes),
                    "format_errors": sum(t.format < 0 for t in episodes),
                    "groups_with_signal": sum(len({m.trajectory.score for m in g}) > 1 for g in batch),
                    "replayed": sum(m.replayed for g in batch for m in g),
                    "grad_norm": learned["learner/grad_norm"],
                    "entropy": learned["learner/entropy"],
                    "seconds": time.monotonic() - started,
                }
            )
            say(
                f"{arm} seed {seed}: step {step}/{settings.steps}, success {records[-1]['success']:.2f}, as shown "
                f"{fmean(records[-1]['as_shown']):.2f}, replayed {records[-1]['replayed']}, {records[-1]['seconds']:.1f} s"
            )
        await engine.close()
    return records
