"""Builds what a run is made of from its configuration, and takes it down again in the right order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.policy.load import Policy
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import Engine
from arpo.rollout.episode import EpisodeRunner
from arpo.trainer.checks import check_training
from arpo.trainer.environment import env_client
from arpo.trainer.launch import Launcher, launcher_of
from arpo.trainer.launch.base import Plan
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.source import policy_source
from arpo.trainer.stage import Stage, load_tasks, profile_of


@dataclass
class Assembly(Stage):
    """The parts of a run that trains, or samples its own policy."""

    engine: Engine
    plan: Plan
    launcher: Launcher
    policy: Policy


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
