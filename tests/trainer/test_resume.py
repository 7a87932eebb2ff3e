"""A run that is killed and started again leaves what an uninterrupted one leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tracker_kit import scalars

from arpo.agent.profiles import get_profile
from arpo.checkpoints import folders
from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.protocol.problems import ConfigError
from arpo.trainer.evaluate import evaluate_run
from arpo.trainer.progress import Reporter
from arpo.trainer.source import policy_source
from arpo.trainer.stage import load_tasks
from arpo.trainer.summary import Summary
from arpo.trainer.train import train, warm_start

SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
# one desktop: the engine's batches are the same in every run, so that numbers can be compared to the last digit
SMALL = (
    "env.provider=simulated", "env.desktops=1", "env.screen=[640, 480]", "tasks.suite=simulated",
    "trainer.max_steps=2", "trainer.tasks_per_step=2", "trainer.eval_repeats=1", "trainer.eval_every=1",
    "rollout.group_size=3", "imitation.steps=30", "imitation.target_prob=0.3", "agent.max_pixels=12544",
)  # fmt: skip
# what a clock or the system says of a step
CLOCKED = ("seconds", "utilisation", "engine_requests", "rss", "attempt")


class Killed(BaseException):
    """Nothing in the product may catch it."""


class Recorder(Reporter):
    """Remembers what was said; kills the run when it says something."""

    def __init__(self, kill_at: str | None = None) -> None:
        super().__init__()
        self.said: list[str] = []
        self._kill_at = kill_at

    def say(self, message: str) -> None:
        self.said.append(message)
        if self._kill_at is not None and message.startswith(self._kill_at):
            raise Killed(message)


@pytest.fixture(scope="module")
def imitated(tmp_path_factory) -> Path:
    """A folder with two tasks and the run `imitated`, which has its warm start behind it."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = {"calculator": ["calculator-product"], "files": ["files-delete"]}
    (folder / "two.json").write_text(json.dumps(tasks))
    result, saved = asyncio.run(warm_start(config(folder, "imitated"), Recorder()))
    assert (result.demonstrations, saved.step) == (2, 0)
    assert result.probability_after > result.probability_before
    return folder


def config(folder: Path, name: str, *overrides: str) -> Config:
    own = (f"run.dir={folder}", f"run.name={name}", f"tasks.set={folder}/two.json")
    return load_config(SMOKE, [*SMALL, *own, *overrides])


def go_on(folder: Path, name: str, *kills: str) -> tuple[Summary, list[list[str]]]:
    """Train from the warm start to the end, killed at these words; returns what was said in every part."""
    shutil.copytree(folder / "imitated", folder / name)
    said = []
    for kill in kills:
        reporter = Recorder(kill)
        # amid the rollouts' task group it comes as a group of itself
        with pytest.raises((Killed, BaseExceptionGroup)):
            asyncio.run(train(config(folder, name), reporter))
        assert reporter.said[-1].startswith(kill)
        said.append(reporter.said)
    reporter = Recorder()
    summary = asyncio.run(train(config(folder, name), reporter))
    return summary, [*said, reporter.said]


def comparable(summary: Summary) -> dict[str, Any]:
    """Everything but what a clock says."""
    document = summary.model_dump(
        exclude={"run", "checkpoint", "best_checkpoint", "seconds", "config_changes", "peak_rss_gib"}
    )
    document["per_step"] = [
        {key: value for key, value in row.items() if not any(word in key for word in CLOCKED)}
        for row in document["per_step"]
    ]
    return document


@pytest.mark.slow
def test_a_run_killed_twice_equals_one_that_was_not(imitated) -> None:
    whole, _ = go_on(imitated, "whole")
    assert whole.missing == []
    assert any(row["learner/grad_norm"] > 0 for row in whole.per_step), "the comparison would show nothing"

    # while its first evaluation waits to be recorded, and between the metrics of step 2 and its checkpoint
    killed, said = go_on(imitated, "killed", "evaluation step-000001", "step 2/2: score")
    assert comparable(killed) == comparable(whole)
    evaluations = [line.split(":")[0] for part in said for line in part if line.startswith("evaluation ")]
    assert evaluations == ["evaluation before", "evaluation step-000001", "evaluation after"]
    assert not any(line.startswith("imitation") for part in said for line in part)
    changed = [[line for line in part if line.startswith("changed")] for part in said]
    assert changed == [["changed since this run's last start: run.name: imitated → killed"], [], []]
    run = imitated / "killed"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    shown = scalars(run)
    assert [step for step, _ in shown["learner/loss"]] == [1, 2]
    assert [step for step, _ in shown["evaluation/success"]] == [0, 1, 2]
    # both kills came when episodes of step 2 had ended: it begins while step 1 is evaluated
    aside = ["step-000002.abandoned-1.jsonl", "step-000002.abandoned-2.jsonl"]
    assert sorted(path.name for path in (run / "trajectories").iterdir()) == [
        "step-000000.jsonl", "step-000001.jsonl", *aside, "step-000002.jsonl",
    ]  # fmt: skip

    result = asyncio.run(evaluate_run(config(imitated, "killed"), Recorder(), "mine"))
    assert result.policy_version == whole.policy_version == 3
    assert (run / "evaluations" / "mine.json").exists()
    with pytest.raises(ConfigError, match="--label before"):
        asyncio.run(evaluate_run(config(imitated, "killed"), Recorder(), "before"))


def test_a_run_that_exists_is_left_alone_when_it_is_not_to_be_resumed(imitated) -> None:
    before = yaml.safe_load((imitated / "imitated" / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=r"holds a run already; fix: .*run\.resume=true"):
        asyncio.run(train(config(imitated, "imitated", "run.resume=false"), Recorder()))
    with pytest.raises(ConfigError, match=r"step-000000 already; fix: .*arpo train"):
        asyncio.run(warm_start(config(imitated, "imitated"), Recorder()))
    assert yaml.safe_load((imitated / "imitated" / "config.yaml").read_text()) == before
    assert (imitated / "imitated" / "trajectories" / "step-000000.jsonl").exists()


def test_the_policy_stays_the_checkpoints_when_the_tasks_change(imitated) -> None:
    # the tiny policy's tokenizer is made for its tasks: another one under the same weights would be another policy
    def vocabulary(task_set: str, saved: folders.Checkpoint | None) -> dict[str, int]:
        changed = config(imitated, "imitated", f"tasks.set={task_set}")
        suite, tasks, _ = load_tasks(changed)
        profile = get_profile(
            changed.agent.profile,
            min_pixels=changed.agent.min_pixels,
            max_pixels=changed.agent.max_pixels,
            prompt=changed.agent.prompt,
        )
        source = policy_source(changed, suite, tasks, profile, saved)
        return dict(source.load(changed, adapters=True).tokenizer.get_vocab())

    saved = folders.latest(imitated / "imitated" / "checkpoints")
    own = vocabulary(f"{imitated}/two.json", None)
    (imitated / "others.json").write_text(
        json.dumps({"notes": ["notes-milk"], "settings": ["settings-mute"]})
    )
    assert vocabulary(f"{imitated}/others.json", None) != own
    assert vocabulary(f"{imitated}/others.json", saved) == own
