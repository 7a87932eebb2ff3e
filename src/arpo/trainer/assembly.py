"""Builds what a run is made of from its configuration, and takes it down again in the right order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from arpo.agent.profiles import Profile
from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.learner.checkpoint import POLICY
from arpo.learner.export import fill as fill_weights
from arpo.policy.load import Policy, load_policy
from arpo.policy.lora import Lora
from arpo.policy.tiny import cached_tiny
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.make import make_engine
from arpo.rollout.episode import EpisodeRunner
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite
from arpo.trainer.cache import cache_folder
from arpo.trainer.checks import check_training
from arpo.trainer.environment import env_client
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.stage import Stage, load_tasks, profile_of


@dataclass
class Assembly(Stage):
    """The parts of a run that trains, or samples its own policy."""

    engine: Engine
    source: PolicySource
    policy: Policy


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from: a model folder or a hub name; `weights` false: only its shape and tokens."""

    path: str
    weights: bool

    def load(self, config: Config, *, adapters: bool) -> Policy:
        """The policy as configured; adapters: with those that are to be trained, if any are."""
        section = config.model
        lora = Lora(section.lora.rank, section.lora.alpha, section.lora.dropout)
        return load_policy(
            self.path,
            dtype=section.dtype,
            device=section.device,
            min_pixels=config.agent.min_pixels,
            max_pixels=config.agent.max_pixels,
            freeze_vision=section.freeze_vision,
            gradient_checkpointing=section.gradient_checkpointing,
            lora=lora if adapters and lora.rank > 0 else None,
            seed=config.run.seed,
            weights=self.weights,
        )


def policy_source(
    config: Config, suite: Suite, tasks: Sequence[Task], profile: Profile, saved: Checkpoint | None
) -> PolicySource:
    """The checkpoint's blueprint, if there is one, else `model.path`.

    `tiny` is made for the tasks (their words and those to imitate are its tokenizer's corpus) and cached.
    """
    if saved is not None:
        return PolicySource(str(saved.path / POLICY), weights=False)
    if config.model.path != "tiny":
        return PolicySource(config.model.path, weights=True)
    corpus = [profile.system(), *(profile.user_prompt(task.instruction) for task in tasks)]
    for task in tasks if config.imitation.enabled else ():
        if demonstration := suite.demonstration(task):
            corpus += [
                profile.render(turn.thought, list(turn.actions), demonstration.screen)
                for turn in demonstration.turns
            ]
    try:
        folder = cached_tiny(cache_folder() / "tiny", corpus, config.run.seed)
    except OSError as error:
        raise ConfigError(
            f"the cache {cache_folder()} cannot be written: {error.strerror}; fix: set ARPO_CACHE to a folder that can"
        ) from error
    return PolicySource(str(folder), weights=True)


@asynccontextmanager
async def assemble(
    config: Config,
    run: RunDirectory,
    saved: Checkpoint | None,
    reporter: Reporter,
    *,
    fill: bool = False,
    policy_version: int = 0,
) -> AsyncIterator[Assembly]:
    """Everything that episodes need: tasks, policy, engine, env-server.

    saved: where the policy comes from, if not from `model.path`. fill: with its weights, to be sampled and not trained; a
    learner that is restored brings them itself. policy_version: what the engine calls them.
    Raises ConfigError for an engine that knows no token ids.
    """
    if problems := check_training(config):
        raise ConfigError(problems[0])
    suite, tasks, eval_tasks = load_tasks(config)
    profile = profile_of(config)
    source = policy_source(config, suite, tasks, profile, saved)
    policy = source.load(config, adapters=not fill)
    if saved is not None and fill:
        fill_weights(policy.model, saved)
    parameters = sum(p.numel() for p in policy.model.parameters())
    reporter.say(f"policy {saved or config.model.path}: {parameters / 1e6:.2f} M parameters")
    async with AsyncExitStack() as stack:
        env, server = await stack.enter_async_context(
            env_client(config, run.root / "env-server.log", reporter)
        )
        # aside, as some take minutes to start
        engine = await asyncio.to_thread(
            make_engine,
            config,
            policy,
            source.path,
            weights=source.weights,
            policy_version=policy_version,
        )
        stack.push_async_callback(engine.close)
        if fill and not source.weights:
            await engine.push(dict(policy.model.named_parameters()), policy_version)
        yield Assembly(
            config=config,
            run=run,
            reporter=reporter,
            suite=suite,
            tasks=tasks,
            eval_tasks=eval_tasks,
            profile=profile,
            source=source,
            policy=policy,
            engine=engine,
            env=env,
            server=server,
            runner=EpisodeRunner(env, policy.encoder, profile, run.screenshots),
        )
