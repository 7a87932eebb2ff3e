"""Every group is closed whatever fails; a retry waits until the env-server is back; a bug is not a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from rollout_kit import FINISH, Says, rules, runner, scripted, task
from scripted_desktop import Harness, Script, env_server

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.rollout.collect import Collector
from arpo.rollout.groups import Group
from arpo.rollout.scheduler import Scheduler
from arpo.trajectory import Trajectory

BROKEN = ProblemError(ProblemCode.EVALUATOR_FAILED, "broken")


async def at_once() -> None:
    """Nothing to wait for."""


def with_collector(
    folder, script: Script, story: Callable[[Collector], Awaitable[object]], engine: Says | None = None
) -> None:
    async def main() -> None:
        async with env_server(folder, script, capacity=2) as server:
            await server.client.wait_ready(5)
            await story(collector(server))

    def collector(server: Harness) -> Collector:
        return Collector(
            runner=runner(server, folder),
            engine=engine or Says(FINISH),
            rules=rules(),
            concurrency=2,
            on_trajectory=lambda trajectory: None,
            after_fault=at_once,
        )

    asyncio.run(main())


def scheduler(tasks: int, size: int, retries: int) -> Scheduler:
    return Scheduler.of_set(
        [task(f"t{i}") for i in range(tasks)], label="s", group_size=size, max_retries=retries, seed=0
    )


def collected(folder, script: Script, groups: Scheduler) -> tuple[list[Group], list[Trajectory]]:
    ended: list[Trajectory] = []
    result: list[Group] = []

    async def story(collector: Collector) -> None:
        result.extend(await replace(collector, on_trajectory=ended.append).collect(groups))

    with_collector(folder, script, story)
    return result, ended


def test_groups_are_closed_with_faults_run_again_and_hopeless_places_lost(tmp_path) -> None:
    # the first task's evaluator is broken for good; the second's once
    resets = ["", ""]
    once = [True]

    def outcome(desktop) -> object:
        name = resets[desktop.number - 1]
        if name == "t0" or (name == "t1" and once and once.pop()):
            return BROKEN
        return 0.5

    def remember(desktop) -> None:
        resets[desktop.number - 1] = script.resets[-1]

    script = Script(reset=remember, evaluate=outcome)
    groups, ended = collected(tmp_path, script, scheduler(tasks=3, size=2, retries=1))
    assert [(len(g.trajectories), len(g.lost), g.retries) for g in groups] == [
        (0, 2, 2),
        (2, 0, 1),
        (2, 0, 0),
    ]
    assert all(t.score == 0.5 for g in groups for t in g.trajectories)
    assert len(ended) == len({t.episode_id for t in ended}) == 4 + 3 + 2
    assert sum(not t.valid for t in ended) == 5


def test_members_stand_in_the_order_of_their_places_whichever_ended_first(tmp_path) -> None:
    script = Script(evaluate=scripted([BROKEN, 1.0]))
    (group,), ended = collected(tmp_path, script, scheduler(tasks=1, size=4, retries=1))
    places = [t.episode_id.rsplit("/", 1)[1].partition("-")[0] for t in group.trajectories]
    assert places == ["0", "1", "2", "3"]
    assert len(ended) == 5


def test_nobody_runs_a_lost_episode_again_before_the_env_server_is_back(tmp_path) -> None:
    ended: list[Trajectory] = []
    back = asyncio.Event()

    async def story(collector: Collector) -> None:
        waiting = replace(collector, on_trajectory=ended.append, after_fault=back.wait)
        work = asyncio.create_task(waiting.collect(groups))
        while len(ended) < 6:  # the other desktop goes on with what is not lost
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(ended) == 6
        assert not any("retry" in t.episode_id for t in ended)
        back.set()
        assert [len(g.trajectories) for g in await work] == [2, 2, 2]
        assert "retry" in ended[-1].episode_id

    groups = scheduler(tasks=3, size=2, retries=3)
    with_collector(tmp_path, Script(evaluate=scripted([BROKEN, 1.0])), story)


def test_a_bug_ends_the_collection_as_itself_and_gives_every_desktop_back(tmp_path) -> None:
    async def story(collector: Collector) -> None:
        with pytest.raises((ZeroDivisionError, ExceptionGroup)) as caught:
            await collector.collect(scheduler(tasks=2, size=2, retries=3))
        assert caught.type is ZeroDivisionError or caught.group_contains(ZeroDivisionError)

    script = Script()
    with_collector(tmp_path, script, story, Says(ZeroDivisionError("a bug")))
    assert script.started == script.closed
