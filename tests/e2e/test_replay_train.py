"""Successes and demonstrations of one run seed another: `arpo replay export`, `import`, `arpo train`, as a user would."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import lines

from arpo.replay.listing import StoredRun

Arpo = Callable[..., subprocess.CompletedProcess[str]]
SIMULATED = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "tasks.suite=simulated", "trainer.max_steps=1",
    "trainer.eval_before=false", "trainer.eval_after=false", "agent.max_pixels=12544",
)  # fmt: skip


def train(arpo: Arpo, folder: Path, name: str, *arguments: str, command: str = "train") -> str:
    result = arpo(command, *SIMULATED, f"run.dir={folder}", f"run.name={name}", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.slow
def test_one_runs_demonstrations_are_imitated_and_replayed_by_another(arpo: Arpo, tmp_path: Path) -> None:
    train(arpo, tmp_path, "first", "imitation.steps=5", command="imitate")
    data, second = tmp_path / "data", tmp_path / "second"
    exported = arpo("replay", "export", str(tmp_path / "first"), str(data), "--demonstrations")
    assert "4 trajectories" in exported.stdout, exported.stderr
    assert arpo("replay", "import", str(second), str(data)).returncode == 0

    # five steps teach nothing yet, so every group fails as a whole: what was imported takes a place in each
    seeded = ("imitation.steps=5", f"imitation.dataset={data}", "trainer.tasks_per_step=4")
    said = train(arpo, tmp_path, "second", *seeded)
    assert "4 demonstrations read from" in said
    assert "recording demonstrations" not in said
    assert "4 imported trajectories taken in" in said
    (row,) = lines(second / "metrics.jsonl")
    assert (row["replay/imported"], row["replay/size"], row["replay/injected"]) == (4, 4, 4)
    # their weights are against the policy that took them in, which is the one that trains on them
    assert row["learner/replay_weight"] == pytest.approx(1.0, abs=1e-4)
    assert json.loads((second / "summary.json").read_text())["warm_start"]["dataset"] == str(data)

    # a resumed run knows what it has taken in, and another tokenizer's data set is refused before anything happens
    said = train(arpo, tmp_path, "second", *seeded, "trainer.max_steps=2")
    assert "taken in" not in said
    run = StoredRun(second)
    assert {one.where for one in run.listed()} == {"buffer"}
    for one in run.listed():
        assert run.folder.rows.get(one.stored.sha256).score == 1.0
    other = ("imitation.enabled=false", "tasks.set=train")
    assert arpo("replay", "import", str(tmp_path / "third"), str(data)).returncode == 0
    refused = arpo("train", *SIMULATED, f"run.dir={tmp_path}", "run.name=third", *other)
    assert refused.returncode == 2, refused.stderr
    assert "another tokenizer than the policy's; fix: remove" in refused.stderr


@pytest.mark.slow
def test_with_rule_off_nothing_is_stored_and_nothing_taken_in(arpo: Arpo, tmp_path: Path) -> None:
    train(arpo, tmp_path, "off", "replay.rule=off", "imitation.target_prob=0.3")
    run = tmp_path / "off"
    (row,) = lines(run / "metrics.jsonl")
    assert row["rollout/successes"] > 0, "nothing could have been stored: the test shows nothing"
    assert {key: value for key, value in row.items() if key.startswith("replay/") and value} == {}
    assert not (run / "replay" / "rows").exists()
    assert StoredRun(run).listed() == []
