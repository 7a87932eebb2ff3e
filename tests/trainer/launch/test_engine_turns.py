"""Colocated engines use the GPUs in turns with the learner, whichever of them die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

import ray
from ray.exceptions import RayActorError

from arpo.config.load import load_config
from arpo.rollout.engines.base import Generation, Sampling
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.cluster import bundles_of
from arpo.trainer.launch.ray_engines import RayEngine
from arpo.trainer.source import PolicySource

COLOCATED = ("launcher.kind=ray", "engine.kind=vllm", "engine.vllm.colocate=true")


class Actor:
    """An engine actor: what it was asked, in order. Dead, it raises what Ray raises."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[str] = []
        self.alive = True
        self.slow = asyncio.Event()
        self.slow.set()

    def __getattr__(self, method: str) -> Any:
        class Remote:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return self._work(method)

        return Remote

    async def _work(self, method: str) -> Any:
        await self.slow.wait()
        if not self.alive:
            raise RayActorError
        self.asked.append(method)
        return Generation([1], [0.0], stopped=False, policy_version=0) if method == "generate" else None


class Given:
    """A publication that notes who got it."""

    def __init__(self) -> None:
        self.to: list[Actor] = []

    async def give(self, number: int, actor: Actor) -> None:
        if not actor.alive:
            raise RayActorError
        assert actor.number == number
        actor.asked.append("weights")
        self.to.append(actor)


class Cluster:
    """Starts actors, or holds them back in their start."""

    def __init__(self) -> None:
        self.started: list[Actor] = []
        self.held = False

    def engine(self, number: int, cls: Any, *arguments: Any) -> Actor:
        actor = Actor(number)
        if self.held:
            actor.slow.clear()
        self.started.append(actor)
        return actor


def turns(test: Callable[[RayEngine, Cluster], Any]) -> None:
    config = load_config(None, [*COLOCATED, "launcher.engines=2", "learner.ranks=2"])
    cluster = Cluster()

    async def work() -> None:
        plan = Plan(config, PolicySource("nowhere", weights=True))
        async with RayEngine(cluster, plan, lambda line: None) as engine:  # type: ignore[arg-type]
            await engine.publish(Given(), 0)
            await test(engine, cluster)

    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    """What Ray was told to kill."""
    told: list[Actor] = []
    monkeypatch.setattr(ray, "kill", told.append)
    return told


def test_all_sleep_until_weights_are_published_and_wake_before_they_take_them() -> None:
    async def test(engine: RayEngine, cluster: Cluster) -> None:
        given = Given()
        await engine.sleep()
        assert [actor.asked for actor in cluster.started] == [["start", "weights", "sleep"]] * 2
        await engine.sleep()  # asleep already
        await engine.publish(given, 1)
        assert [actor.asked for actor in cluster.started] == [
            ["start", "weights", "sleep", "wake", "weights"]
        ] * 2
        await engine.publish(Given(), 2)
        assert [actor.asked[-2:] for actor in cluster.started] == [["weights", "weights"]] * 2
        assert engine.restarts == 0

    turns(test)


@pytest.mark.parametrize("dies", ["before it sleeps", "asleep"])
def test_one_that_dies_while_the_learner_works_is_started_again_with_the_next_weights(dies: str) -> None:
    async def test(engine: RayEngine, cluster: Cluster) -> None:
        first, second = cluster.started
        if dies == "before it sleeps":
            second.alive = False
        await engine.sleep()
        second.alive = False
        await asyncio.sleep(0.05)
        assert len(cluster.started) == 2, "the learner has the GPUs"
        await engine.sleep()
        given = Given()
        await engine.publish(given, 1)
        _, _, successor = cluster.started
        assert sorted(actor.number for actor in given.to) == [0, 1]
        assert set(given.to) == {first, successor}
        assert successor.asked == ["start", "weights"]
        assert engine.restarts == 1

    turns(test)


def test_one_that_is_coming_up_is_waited_for_before_the_learner_has_the_gpus() -> None:
    async def test(engine: RayEngine, cluster: Cluster) -> None:
        first, second = cluster.started
        first.alive = second.alive = False
        cluster.held = True
        asking = [
            asyncio.create_task(engine.generate([1], [], Sampling(temperature=1.0, max_new_tokens=1, seed=0)))
            for _ in range(2)
        ]
        while len(cluster.started) < 4:
            await asyncio.sleep(0)
        sleeping = asyncio.create_task(engine.sleep())
        await asyncio.sleep(0.05)
        assert not sleeping.done()
        for actor in cluster.started[2:]:
            actor.slow.set()
        await sleeping
        assert all("sleep" in actor.asked for actor in cluster.started[2:])
        await asyncio.gather(*asking)

    turns(test)


def test_colocated_engines_share_the_first_ranks_bundles() -> None:
    options = [*COLOCATED, "learner.ranks=3", "launcher.engines=2", "launcher.cpus=4"]
    shared = bundles_of(load_config(None, [*options, "hardware.gpus=3"]))
    assert shared == [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}, {"CPU": 4, "GPU": 1}]
    assert bundles_of(load_config(None, options)) == [{"CPU": 8}, {"CPU": 8}, {"CPU": 4}]
    apart = [*options, "engine.vllm.colocate=false", "engine.vllm.tensor_parallel=2", "hardware.gpus=7"]
    assert bundles_of(load_config(None, apart)) == [{"CPU": 4, "GPU": 1}] * 3 + [{"CPU": 4, "GPU": 2}] * 2
