"""Which way the weights of a publication take to an engine, and what changes that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

import ray

from arpo.config.load import load_config
from arpo.rollout.engines import EngineError
from arpo.rollout.engines.base import EngineUnusableError
from arpo.rollout.engines.vllm.weights import MisfitError
from arpo.trainer.launch.outgoing import sends
from arpo.trainer.launch.publication import Direct


class Actor:
    """An engine actor as far as the object store's way needs one."""

    def __init__(self) -> None:
        self.stored: list[tuple[Any, int]] = []
        self.stuck = False
        self.push = self

    def remote(self, packed: Any, version: int, traceparent: str | None) -> Any:
        async def take() -> None:
            if self.stuck:
                await asyncio.sleep(60)
            self.stored.append((packed, version))

        return take()


@dataclass
class Ranks:
    """What `Direct` asks of the learner: rank 0 fails as told."""

    failure: Exception | None = None
    sent: list[tuple[int, Any, int, int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def hold(self, serial: int) -> None: ...

    def keep(self, serial: int) -> None:
        self.kept.append(serial)

    async def send(self, number: int, actor: Any, serial: int, version: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append((number, actor, serial, version))

    def packed(self, serial: int) -> str:
        return f"publication {serial}"


def test_weights_go_straight_to_an_engine_while_that_works() -> None:
    ranks, actor, said = Ranks(), Actor(), []

    async def work() -> None:
        direct = Direct(ranks, 5, said.append)
        for version in (7, 8):
            await (await direct.hold(version)).give(0, actor)

    asyncio.run(work())
    assert [(number, serial, version) for number, _, serial, version in ranks.sent] == [(0, 1, 7), (0, 2, 8)]
    assert actor.stored == said == []


def test_an_engine_that_cannot_be_met_gets_its_weights_from_the_store_and_its_successor_is_met_anew() -> None:
    ranks, first, other, successor, said = Ranks(EngineError("no way")), Actor(), Actor(), Actor(), []

    async def work() -> None:
        direct = Direct(ranks, 5, said.append)
        await (await direct.hold(1)).give(0, first)
        ranks.failure = None
        later = await direct.hold(2)
        await later.give(0, first)
        await later.give(1, other)
        await later.give(0, successor)

    asyncio.run(work())
    assert first.stored == [("publication 1", 1), ("publication 2", 2)]
    assert [(number, actor) for number, actor, *_ in ranks.sent] == [(1, other), (0, successor)]
    (line,) = said
    assert line.startswith("engine 0 gets its weights through the object store from now on")
    assert "no way" in line


def test_a_colocated_engine_gets_weights_from_its_rank_once_and_whoever_comes_later_from_rank_0() -> None:
    ranks, said = Ranks(), []
    engines, successors = [Actor(), Actor()], [Actor(), Actor()]

    async def work() -> None:
        publication = await Direct(ranks, 5, said.append, colocated=True).hold(3)
        for number, actor in enumerate(engines):
            await publication.give(number, actor)
        await publication.give(1, successors[1])  # the engine died while it took them
        await publication.keep()
        await publication.give(0, successors[0])  # rank 0 has kept them

    asyncio.run(work())
    assert [(number, actor) for number, actor, *_ in ranks.sent] == [
        (0, engines[0]),
        (1, engines[1]),
        (0, successors[0]),
    ]
    assert successors[1].stored == [("publication 1", 3)]
    assert ranks.kept == [1]
    assert said == [], "nothing has failed"


def test_a_colocated_engine_that_was_away_when_weights_were_published_gets_them_from_the_store() -> None:
    ranks, late = Ranks(), Actor()

    async def work() -> None:
        direct = Direct(ranks, 5, lambda line: None, colocated=True)
        publication = await direct.hold(3)
        await publication.keep()
        await publication.give(1, late)
        await (await direct.hold(4)).give(1, late)

    asyncio.run(work())
    assert late.stored == [("publication 1", 3)]
    assert [(number, version) for number, _, _, version in ranks.sent] == [(1, 4)], (
        "the next comes from its rank"
    )


@pytest.mark.parametrize("failure", [MisfitError("do not fit"), EngineUnusableError("gone")])
def test_what_another_way_would_not_help_is_raised(failure: Exception) -> None:
    actor, said = Actor(), []

    async def work() -> None:
        with pytest.raises(type(failure), match=str(failure)):
            await (await Direct(Ranks(failure), 5, said.append).hold(1)).give(0, actor)

    asyncio.run(work())
    assert actor.stored == said == []


def test_an_engine_that_takes_no_weights_from_the_store_either_is_of_no_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = Actor()
    actor.stuck = True
    told: list[Any] = []
    monkeypatch.setattr(ray, "cancel", told.append)

    async def work() -> None:
        with pytest.raises(EngineUnusableError, match=r"within 0\.1 s"):
            await (await Direct(Ranks(EngineError("no way")), 0.1, lambda line: None).hold(1)).give(0, actor)

    asyncio.run(work())
    assert len(told) == 1, "the actor is told that nobody waits any more"


@pytest.mark.parametrize(
    ("options", "itself"),
    [
        (["engine.kind=vllm"], True),
        (["engine.kind=vllm", "engine.vllm.weight_transfer=nccl"], True),
        (["engine.kind=vllm", "engine.vllm.weight_transfer=reload"], False),
        (["engine.kind=hf"], False),
    ],
)
def test_the_learner_sends_itself_to_engines_that_can_receive(options: list[str], itself: bool) -> None:
    assert sends(load_config(None, options)) is itself
