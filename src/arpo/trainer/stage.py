"""What episodes need: desktops, an engine and a place to be recorded. Needs no torch: with a model server this is all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from arpo.agent.profiles import Profile, get_profile
from arpo.client import EnvClient
from arpo.config.model import Config
from arpo.protocol.messages import SessionOptions
from arpo.rollout.collect import Collector
from arpo.rollout.dialogue import Words
from arpo.rollout.engines.base import AnyEngine, Sampling
from arpo.rollout.engines.openai import OpenAIEngine, api_key
from arpo.rollout.episode import EpisodeRules, EpisodeRunner
from arpo.rollout.usage import Usage
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite, load_suite
from arpo.trainer.embedded import EmbeddedServer
from arpo.trainer.environment import Comeback, env_client
from arpo.trainer.progress import Reporter
from arpo.trainer.run_directory import RunDirectory
from arpo.trajectory import Trajectory


@dataclass
class Stage:
    """The parts of a run that episodes need.

    server: the embedded one, if there is one. usages: of all collectors that run episodes now.
    """

    config: Config
    run: RunDirectory
    reporter: Reporter
    suite: Suite
    tasks: list[Task]
    eval_tasks: list[Task]
    profile: Profile
    engine: AnyEngine
    env: EnvClient
    server: EmbeddedServer | None
    runner: EpisodeRunner
    usages: set[Usage] = field(default_factory=set, kw_only=True)

    def collector(self, *, temperature: float, on_trajectory: Callable[[Trajectory], None]) -> Collector:
        """Runs episodes at a temperature on all desktops."""
        config = self.config
        return Collector(
            runner=self.runner,
            engine=self.engine,
            rules=self.rules(temperature),
            concurrency=config.env.desktops,
            on_trajectory=on_trajectory,
            after_fault=Comeback(self.env, config.env.outage_s).wait,
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


def profile_of(config: Config) -> Profile:
    """How the policy is spoken to."""
    agent = config.agent
    return get_profile(
        agent.profile, min_pixels=agent.min_pixels, max_pixels=agent.max_pixels, prompt=agent.prompt
    )


@asynccontextmanager
async def served(config: Config, run: RunDirectory, reporter: Reporter) -> AsyncIterator[Stage]:
    """A stage whose policy is behind `engine.openai.url`."""
    suite, tasks, eval_tasks = load_tasks(config)
    profile, section, agent = profile_of(config), config.engine.openai, config.agent
    engine = OpenAIEngine(section, api_key(section))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        reporter.say(f"policy {section.model} on {section.url}")
        env, server = await stack.enter_async_context(
            env_client(config, run.root / "env-server.log", reporter)
        )
        yield Stage(
            config=config,
            run=run,
            reporter=reporter,
            suite=suite,
            tasks=tasks,
            eval_tasks=eval_tasks,
            profile=profile,
            engine=engine,
            env=env,
            server=server,
            runner=EpisodeRunner(
                env,
                Words(agent.history_screenshots, agent.min_pixels, agent.max_pixels),
                profile,
                run.screenshots,
            ),
        )
