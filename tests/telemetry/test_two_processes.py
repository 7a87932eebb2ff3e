"""`arpo-env-server` and `arpo train` as processes, and a collector: whole traces, also when the server is killed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from otlp_collector import Collector, collector
from runs import finish, lines, start, trajectories, wait_for
from server_process import server_process

from arpo.telemetry import names
from arpo.trajectory import Trajectory

pytestmark = pytest.mark.slow

RUN = (
    "config=configs/smoke_cpu.yaml", "tasks.suite=simulated", "imitation.steps=5", "trainer.eval_before=false",
    "trainer.eval_after=false", "trainer.max_steps=2", "trainer.tasks_per_step=2", "rollout.group_size=2",
    "agent.max_pixels=12544", "run.name=traced",
)  # fmt: skip
CAPACITY = ("--capacity", "2")


class Traced(NamedTuple):
    """A run that has ended, and what it sent."""

    run: Path
    got: Collector
    output: str
    server_log: str


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    with collector() as got, pytest.MonkeyPatch.context() as patch:
        for name, value in got.environment().items():
            patch.setenv(name, value)
        with server_process(folder, *CAPACITY) as server:
            process = start(*RUN, *at(server.url, folder), f"run.dir={folder}")
            output = finish(process)
            assert process.returncode == 0, output
            assert server.stop() == 0
            yield Traced(folder / "traced", got, output, server.log)


def at(url: str, folder: Path) -> tuple[str, str]:
    return f"env.url={url}", f"env.token_file={folder / 'token'}"


def expected(trajectory: Trajectory) -> Any:
    """The trace of an episode, from its record: operations, the server's beneath them, its phases beneath those."""
    below = []
    for one in trajectory.operations:
        phases = [phase for phase, _, _ in one.phases if phase not in ("lease", "queue")]
        server = [(f"env.{one.name}", [(names.PHASES[phase].name, []) for phase in phases])]
        lease = [("arpo.lease", [])] if one.name == "reset" else []
        below.append((f"arpo.{one.name}", [] if one.name == "generate" else [*lease, *server]))
    return "arpo.episode", below


def test_every_episode_is_one_whole_trace(traced: Traced) -> None:
    recorded = {t.trace_id: t for t in trajectories(traced.run)}
    roots = traced.got.named("arpo.episode")
    assert sorted(root.trace_id for root in roots) == sorted(recorded)
    assert len(roots) == len(recorded) == 4 + 2 * 2 * 2, (
        "the demonstrations, and two steps of two groups of two"
    )
    for root in roots:
        assert traced.got.tree(root) == expected(recorded[root.trace_id])
    assert traced.got.orphans() == []
    assert {span.error for span in traced.got.spans} == {None}


def test_the_trace_of_a_whole_episode_is_this(traced: Traced) -> None:
    (root,) = [
        root
        for root in traced.got.named("arpo.episode")
        if root.attributes["arpo.episode.id"].startswith("demo/") and "notes-milk" in str(root.attributes)
    ]
    shown = [("desktop.screenshot", []), ("desktop.encode", [])]
    ready = [("desktop.setup", []), ("desktop.settle", []), *shown]
    acted = [("desktop.act", []), ("desktop.settle", []), *shown]
    assert traced.got.tree(root) == (
        "arpo.episode",
        [
            ("arpo.reset", [("arpo.lease", []), ("env.reset", ready)]),
            ("arpo.generate", []),
            ("arpo.step", [("env.step", acted)]),
            ("arpo.generate", []),
            ("arpo.step", [("env.step", shown)]),  # `finished` does nothing on the screen
            ("arpo.evaluate", [("env.evaluate", [("desktop.evaluate", [])])]),
        ],
    )
    assert (root.attributes["arpo.score"], root.service) == (1.0, "arpo-trainer")
    services = {span.name.partition(".")[0]: span.service for span in traced.got.spans}
    assert services == {"arpo": "arpo-trainer", "env": "arpo-env-server", "desktop": "arpo-env-server"}


def test_every_train_step_is_a_trace_that_links_to_its_episodes(traced: Traced) -> None:
    steps = traced.got.named("arpo.train_step")
    assert [step.attributes["arpo.train_step.number"] for step in steps] == [1, 2]
    assert [step.attributes["arpo.attempt"] for step in steps] == [1, 1]
    by_id = {t.episode_id: t for t in trajectories(traced.run)}
    for step, batch in zip(steps, lines(traced.run / "batches.jsonl"), strict=True):
        children = [child.name for child in traced.got.children(step)]
        assert children == ["arpo.collect", "arpo.replay", "arpo.learn", "arpo.push", "arpo.checkpoint"]
        learned = [
            name for group in batch["groups"] for which in ("episodes", "replayed") for name in group[which]
        ]
        assert sorted(step.links) == sorted((by_id[name].trace_id, by_id[name].span_id) for name in learned)
        assert step.attributes["arpo.episodes"] == len(learned) == 4
        assert step.attributes["arpo.run"] == "traced"


def test_log_lines_name_the_trace_that_they_belong_to(traced: Traced) -> None:
    episodes = {root.trace_id for root in traced.got.named("arpo.episode")}
    leased = re.findall(
        r"session \S+ of trainer: .* trace_id=([0-9a-f]{32})$", traced.server_log, re.MULTILINE
    )
    assert sorted(leased) == sorted(episodes)
    steps = [step.trace_id for step in traced.got.named("arpo.train_step")]
    said = re.findall(r"step \d/2: score .* trace_id=([0-9a-f]{32})", traced.output)
    assert said == steps
    for line in traced.output.splitlines():
        if "demonstrations recorded" in line:
            assert "trace_id" not in line


def test_the_figures_of_trainer_and_env_server_arrive_under_their_names(traced: Traced) -> None:
    known = {(metric.service, metric.name): metric for metric in names.METRICS}
    assert set(traced.got.metrics) <= set(known)
    expected = set(known) - {
        ("arpo-trainer", "arpo.faults"), ("arpo-env-server", "arpo.step.repeats"),
        ("arpo-env-server", "arpo.sessions.reaped"), ("arpo-env-server", "arpo.problems"),
    }  # fmt: skip
    assert expected <= set(traced.got.metrics), "what a run without a fault measures"
    row = lines(traced.run / "metrics.jsonl")[-1]
    for name, key in {
        "arpo.env.utilisation": "rollout/env_utilisation",
        "arpo.engine.utilisation": "rollout/engine_utilisation",
        "arpo.train_step.number": "step",
    }.items():
        (point,) = traced.got.metrics["arpo-trainer", name]
        assert (point.as_double or point.as_int) == row[key]
    operations = traced.got.metrics["arpo-trainer", "arpo.episode.operation"]
    for point in operations:
        assert list(point.explicit_bounds) == list(names.BUCKETS_S)
        assert max(point.explicit_bounds) == 300.0
    recorded = Counter(one.name for t in trajectories(traced.run) for one in t.operations)
    assert {label(point, "operation"): point.count for point in operations} == recorded
    ended = {
        label(point, "operation"): point.count
        for point in traced.got.metrics["arpo-env-server", "arpo.operation"]
    }
    assert ended == {name: count for name, count in recorded.items() if name != "generate"}


def label(point: Any, key: str) -> str:
    (value,) = [one.value.string_value for one in point.attributes if one.key == key]
    return value


def test_a_killed_env_server_leaves_whole_traces_and_no_orphans(tmp_path: Path, received: Collector) -> None:
    # the demonstrations' steps take long enough to be killed in
    slow = (*CAPACITY, "--provider-option", "step_latency_s=0.8")
    run = tmp_path / "traced"
    with server_process(tmp_path, *slow) as server:
        process = start(*RUN, *at(server.url, tmp_path), f"run.dir={tmp_path}", "rollout.max_retries=4")
        try:
            wait_for(lambda: received.named("env.reset"))
            wait_for(lambda: busy(server.log), 20)
            server.process.kill()
            server.process.wait()
            (tmp_path / "url").unlink()
            with server_process(tmp_path, *slow, port=int(server.url.rpartition(":")[2])):
                output = finish(process)
        finally:
            process.kill()
    assert process.returncode == 0, output
    recorded = {t.trace_id: t for t in trajectories(run)}
    faults = lines(run / "faults.jsonl")
    assert faults
    assert {fault["trace_id"] for fault in faults} == {t for t, one in recorded.items() if one.problem}
    roots = {root.trace_id: root for root in received.named("arpo.episode")}
    assert set(roots) == set(recorded)
    assert received.orphans() == []
    for trace_id, trajectory in recorded.items():
        root = roots[trace_id]
        assert root.error == (trajectory.problem.code.value if trajectory.problem else None)
        assert ours(received.tree(root)) == ours(expected(trajectory)), "a trainer's span is missing"
        if not trajectory.problem and trajectory.episode_id.startswith("train/"):
            assert received.tree(root) == expected(trajectory)  # after the kill
        last = trajectory.operations[-1]
        if trajectory.problem:
            assert last.problem == trajectory.problem.code
            (failed,) = [span for span in received.children(root) if span.error]
            assert (failed.name, failed.error) == (f"arpo.{last.name}", trajectory.problem.code.value)


def busy(log: str) -> bool:
    """An episode is between its reset and its end."""
    return log.count(" of trainer: ") > log.count(" closed: ")


def ours(tree: Any) -> Any:
    """A tree without what the env-server sent: some of that died with it."""
    name, below = tree
    return name, [ours(one) for one in below if one[0].startswith("arpo.")]
