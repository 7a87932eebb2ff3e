"""Builds what a run is made of from its configuration, and takes it down again in the right order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from arpo.agent.profiles import Profile, get_profile
from arpo.checkpoints.folders import Checkpoint
from arpo.client import EnvClient
from arpo.config.model import Config
from arpo.policy.load import Policy
from arpo.protocol.messages import SessionOptions
from arpo.rollout.collect import Collector
from arpo.rollout.engines.base import Engine, Sampling
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite, load_suite
from arpo.trainer.embedded import EmbeddedServer
from arpo.trainer.environment import env_client
from arpo.trainer.launch import Launcher, launcher_of
from arpo.trainer.launch.base import Plan
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.source import policy_source
from arpo.trajectory import Trajectory


@dataclass
class Assembly:
    """The parts of a run."""

    config: Config
    run: RunDirectory
    reporter: Reporter
    suite: Suite
    tasks: list[Task]
    eval_tasks: list[Task]
    profile: Profile
    plan: Plan
    launcher: Launcher
    policy: Policy
    engine: Engine
    env: EnvClient
    server: EmbeddedServer | None
    runner: EpisodeRunner

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
            options=SessionOptions(idle_timeout_s=config.env.idle_timeout_s, client_id=config.run.name),
        )


def load_tasks(config: Config) -> tuple[Suite, list[Task], list[Task]]:
    """The suite, its training tasks and its evaluation tasks."""
    suite = load_suite(config.tasks.suite)
    tasks = suite.task_set(config.tasks.set)
    return suite, tasks, suite.task_set(config.tasks.eval_set) if config.tasks.eval_set else tasks


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
    plan = Plan(config, source, saved if fill else None, policy_version)
    launch = launcher_of(config, reporter)
    policy = launch.policy(plan)
    parameters = sum(p.numel() for p in policy.model.parameters())
    reporter.say(f"policy {saved or config.model.path}: {parameters / 1e6:.2f} M parameters")
    async with AsyncExitStack() as stack:
        env, server = await stack.enter_async_context(
            env_client(config, run.root / "env-server.log", reporter)
        )
        launcher = await stack.enter_async_context(launch)
        engine = await stack.enter_async_context(launcher.engine(plan, policy))
        yield Assembly(
            config=config,
            run=run,
            reporter=reporter,
            suite=suite,
            tasks=tasks,
            eval_tasks=eval_tasks,
            profile=profile,
            plan=plan,
            launcher=launcher,
            policy=policy,
            engine=engine,
            env=env,
            server=server,
            runner=EpisodeRunner(env, policy.encoder, profile, run.screenshots),
        )
