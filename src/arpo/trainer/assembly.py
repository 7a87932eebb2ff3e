"""Builds what a run is made of from its configuration, and takes it down again in the right order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from arpo.agent.profiles import Profile, get_profile
from arpo.checkpoints.folders import Checkpoint
from arpo.client import EnvClient
from arpo.config.model import Config
from arpo.learner.checkpoint import POLICY
from arpo.learner.export import fill as fill_weights
from arpo.policy.load import Policy, load_policy
from arpo.policy.lora import Lora
from arpo.policy.tiny import cached_tiny
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import ConfigError
from arpo.rollout.collect import Collector
from arpo.rollout.engines.base import Engine, Sampling
from arpo.rollout.engines.make import make_engine
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.rollout.usage import Usage
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite, load_suite
from arpo.trainer.cache import cache_folder
from arpo.trainer.embedded import EmbeddedServer
from arpo.trainer.environment import env_client
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trajectory import Trajectory


@dataclass
class Assembly:
    """The parts of a run. usages: of all collectors that run episodes now."""

    config: Config
    run: RunDirectory
    reporter: Reporter
    suite: Suite
    tasks: list[Task]
    eval_tasks: list[Task]
    profile: Profile
    source: PolicySource
    policy: Policy
    engine: Engine
    env: EnvClient
    server: EmbeddedServer | None
    runner: EpisodeRunner
    usages: set[Usage] = field(default_factory=set)

    def collector(self, *, temperature: float, on_trajectory: Callable[[Trajectory], None]) -> Collector:
        """Runs episodes at a temperature on all desktops."""
        config = self.config
        return Collector(
            runner=self.runner,
            engine=self.engine,
            rules=self.rules(temperature),
            concurrency=config.env.desktops,
            on_trajectory=on_trajectory,
            after_fault=partial(self.env.wait_ready, config.env.outage_s),
            adaptive=config.rollout.adaptive_concurrency,
            usages=self.usages,
        )

    def rules(self, temperature: float) -> EpisodeRules:
        """The rules of an episode."""
        config = self.config
        return EpisodeRules(
            max_steps=config.rollout.max_steps,
            max_format_errors=config.agent.max_format_errors,
            sampling=Sampling(
                temperature=temperature,
                top_p=config.engine.top_p,
                max_new_tokens=config.engine.max_new_tokens,
            ),
            timeout_s=config.rollout.episode_timeout_s,
            options=SessionOptions(idle_timeout_s=config.env.idle_timeout_s, client_id=config.run.name),
        )


def load_tasks(config: Config) -> tuple[Suite, list[Task], list[Task]]:
    """The suite, its training tasks and its evaluation tasks."""
    suite = load_suite(config.tasks.suite)
    tasks = suite.task_set(config.tasks.set)
    return suite, tasks, suite.task_set(config.tasks.eval_set) if config.tasks.eval_set else tasks


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
    """
    suite, tasks, eval_tasks = load_tasks(config)
    profile = get_profile(
        config.agent.profile,
        min_pixels=config.agent.min_pixels,
        max_pixels=config.agent.max_pixels,
        prompt=config.agent.prompt,
    )
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
