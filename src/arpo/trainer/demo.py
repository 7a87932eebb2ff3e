"""Demonstrations played on desktops without any model: do the tasks, their evaluators and the desktops work?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from arpo.client import EnvClient
from arpo.config.model import Config
from arpo.files import write_atomic
from arpo.protocol.problems import ConfigError, ProblemError
from arpo.rollout.demonstration import play
from arpo.tasks.demonstration import Demonstration
from arpo.tasks.model import Task
from arpo.tasks.sets import load_suite
from arpo.trainer.cache import cache_folder
from arpo.trainer.environment import env_client
from arpo.trainer.progress import Reporter


@dataclass(frozen=True)
class Played:
    """One demonstration's outcome; `score` is None when the environment failed, and `problem` says how."""

    domain: str
    task_id: str
    score: float | None
    seconds: float
    problem: str = ""


async def play_demonstrations(
    config: Config,
    suite_name: str,
    task_set: str,
    *,
    only: str | None,
    screenshots: Path | None,
    reporter: Reporter,
) -> list[Played]:
    """Play the demonstrations of a set. Raises ConfigError when there is none to play."""
    suite = load_suite(suite_name)
    pairs = [
        (task, demonstration)
        for task in suite.task_set(task_set)
        if only in (None, task.id) and (demonstration := suite.demonstration(task)) is not None
    ]
    if not pairs:
        wanted = f"task {only}" if only else f"any task of set {task_set}"
        raise ConfigError(
            f"suite {suite_name} has no demonstration for {wanted}; fix: see `arpo tasks list -s {suite_name}`"
        )
    gate = asyncio.Semaphore(config.env.desktops)
    log = (screenshots or cache_folder()) / "env-server.log"

    async def one(client: EnvClient, task: Task, demonstration: Demonstration) -> Played:
        async with gate:
            played = await _play(client, task, demonstration, screenshots)
            counter.advance(task.id)
            return played

    async with env_client(config, log, reporter) as (client, _server):
        with reporter.count("playing demonstrations", len(pairs)) as counter:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(one(client, *pair)) for pair in pairs]
    return [job.result() for job in jobs]


async def _play(
    client: EnvClient, task: Task, demonstration: Demonstration, screenshots: Path | None
) -> Played:
    started = time.monotonic()
    score, problem = None, ""
    try:
        async with await client.open_session(task.wire()) as session:

            def keep(turn: int) -> None:
                if screenshots is not None:
                    path = screenshots / task.domain / f"{task.id}-{turn}.png"
                    write_atomic(path, session.observation.screenshot.data)

            score = await play(session, demonstration, keep)
    except ProblemError as error:
        problem = str(error)
    return Played(task.domain, task.id, score, time.monotonic() - started, problem)
