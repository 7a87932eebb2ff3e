"""What is left of weights in a rank's memory once they are sent."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

from arpo.config.load import load_config
from arpo.rollout.engines.base import EngineError, EngineUnusableError
from arpo.trainer.launch import outgoing
from arpo.trainer.launch.outgoing import Outgoing, senders

COLOCATED = [
    "launcher.kind=ray", "engine.kind=vllm", "engine.vllm.colocate=true", "learner.ranks=2", "launcher.engines=2",
    "model.dtype=float32",
]  # fmt: skip


class Engine:
    """Takes weights, or fails to; notes what it was asked and whether the weights were still there."""

    def __init__(self, watched: weakref.ref[Any], failure: Exception | None = None) -> None:
        self.watched = watched
        self.failure = failure
        self.got: list[float] = []
        self.asked: list[tuple[str, bool]] = []

    def ask(self, method: str, *arguments: Any) -> None:
        self.asked.append((method, self.watched() is not None))

    def send(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self.failure is not None:
            raise self.failure
        self.got = weights["w"].tolist()

    def close(self) -> None:
        """It is met anew."""


def held(options: list[str], *, lead: bool) -> tuple[Outgoing, weakref.ref[Any]]:
    """Publication 1, whose tensor nobody but the rank has."""
    there = Outgoing(load_config(None, options), lead=lead)
    tensor = torch.tensor([1.0, 2.0])
    there.hold(1, {"w": tensor})
    return there, weakref.ref(tensor)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is its own actor and its own sender."""
    monkeypatch.setattr(outgoing, "_Asking", lambda actor, timeout_s: actor.ask)
    monkeypatch.setattr(Outgoing, "_sender", lambda self, number, actor, ask: actor)


@pytest.mark.parametrize("lead", [True, False])
def test_a_colocated_engine_takes_its_room_back_when_the_gathered_weights_are_gone(
    lead: bool, connected: None
) -> None:
    there, tensor = held(COLOCATED, lead=lead)
    engine = Engine(tensor)
    there.send(0 if lead else 1, engine, 1, 7)
    assert engine.got == [1.0, 2.0]
    assert engine.asked == [("pause", True), ("resume", False)]
    there.keep(1)  # as the driver asks all that send
    if lead:
        late = Engine(tensor)
        there.send(0, late, 1, 7)
        assert late.got == [1.0, 2.0], "rank 0 has a copy"


@pytest.mark.parametrize("failure", [EngineError("no way"), EngineUnusableError("gone")])
def test_so_it_is_when_sending_has_failed_for_the_engine_that_is_started_instead(
    failure: Exception, connected: None
) -> None:
    there, tensor = held(COLOCATED, lead=False)
    with pytest.raises(type(failure)):
        there.send(1, Engine(tensor, failure), 1, 7)
    failure.__traceback__ = None  # its frames have the weights
    assert tensor() is None


def test_an_engine_elsewhere_leaves_the_weights_for_the_next(connected: None) -> None:
    options = [option for option in COLOCATED if "colocate" not in option]
    there, tensor = held(options, lead=True)
    for number in range(2):
        engine = Engine(tensor)
        there.send(number, engine, 1, 7)
        assert engine.asked == [("pause", True), ("resume", True)]
    there.keep(1)
    assert tensor() is None, "what is kept is a copy"


def test_every_colocated_engine_has_a_rank_that_sends() -> None:
    assert senders(load_config(None, COLOCATED)) == 2
    assert senders(load_config(None, [option for option in COLOCATED if "colocate" not in option])) == 1
