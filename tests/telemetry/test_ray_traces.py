"""With the Ray launcher the trace goes into the processes of engines and learner ranks, as an argument of their calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from otlp_collector import Collector
from runs import finish, start

pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

RUN = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "tasks.suite=simulated", "imitation.enabled=false",
    "trainer.eval_before=false", "trainer.eval_after=false", "trainer.max_steps=3", "trainer.tasks_per_step=1",
    "rollout.group_size=3", "env.desktops=1", "learner.ranks=2", "launcher.kind=ray", "agent.max_pixels=12544",
    "run.name=ray",
)  # fmt: skip


def test_spans_of_actors_are_children_of_the_drivers(tmp_path: Path, received: Collector) -> None:
    process = start(
        *RUN, f"run.dir={tmp_path}", RAY_ADDRESS="", RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1"
    )
    output = finish(process, 550)
    assert process.returncode == 0, output
    assert received.orphans() == []
    by_id = {span.span_id: span for span in received.spans}

    def parents(name: str) -> set[str]:
        return {by_id[span.parent_id].name for span in received.named(name)}

    assert parents("engine.generate") == {"arpo.generate"}
    assert parents("engine.push") == {"arpo.push"}
    assert parents("learner.call") == {"arpo.learn"}
    services = {span.name: span.service for span in received.spans}
    assert (services["engine.generate"], services["learner.call"]) == ("arpo-engine", "arpo-learner-rank")
    first = received.named("arpo.train_step")[0]  # actors are killed at the end, with what they have not sent
    calls = [span for span in received.named("learner.call") if span.trace_id == first.trace_id]
    assert sorted((span.attributes["arpo.learner.rank"], span.attributes["arpo.learner.method"]) for span in calls) == [
        (0, "step"), (1, "step"),
    ]  # fmt: skip
