"""Telemetry is tested on episodes and runs: their kits are the rollout, client and run tests'."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from otlp_collector import Collector, collector

from arpo.telemetry import names
from arpo.telemetry.export import exporting

for _folder in ("rollout", "client", "e2e"):
    sys.path.append(str(Path(__file__).parents[1] / _folder))


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the environment points; nothing exports yet."""
    with collector() as got:
        for name, value in got.environment().items():
            monkeypatch.setenv(name, value)
        yield got


@pytest.fixture
def exported(received: Collector) -> Iterator[Collector]:
    """What this process exports; complete once `flush` was called."""
    said: list[str] = []
    export = exporting(names.TRAINER, said.append)
    export.__enter__()
    ended = False

    def flush() -> None:
        nonlocal ended
        if not ended:
            ended = True
            export.__exit__(None, None, None)

    received.flush = flush
    yield received
    flush()
    assert said == []
