"""`arpo imitate`, `arpo evaluate` and `arpo tasks` through their real doors, on simulated desktops."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Arpo = Callable[..., subprocess.CompletedProcess[str]]
SIMULATED = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "tasks.suite=simulated", "agent.max_pixels=12544",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_is_warm_started_once_and_its_checkpoint_is_what_evaluate_evaluates(
    arpo: Arpo, tmp_path: Path
) -> None:
    run = (*SIMULATED, f"run.dir={tmp_path}", "run.name=warm")
    imitated = arpo("imitate", *run)
    assert imitated.returncode == 0, imitated.stderr
    assert "4 demonstrations" in imitated.stdout
    assert (tmp_path / "warm" / "checkpoints" / "step-000000" / "policy" / "config.json").exists()

    evaluated = arpo("evaluate", *run, "trainer.eval_repeats=3", "--label", "warm")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "step-000000" in evaluated.stderr
    result = json.loads((tmp_path / "warm" / "evaluations" / "warm.json").read_text())
    assert result["episodes"] == 12
    assert result["faults"] == {}
    # a random policy never succeeds: what is evaluated is the imitated one
    assert result["success"] > 0

    trained = arpo(
        "train", *run, "trainer.max_steps=1", "trainer.eval_before=false", "trainer.eval_after=false"
    )
    assert trained.returncode == 0, trained.stderr
    assert "resuming" in trained.stderr
    assert "recording demonstrations" not in trained.stderr


def test_task_lists_are_for_people_and_for_programs(arpo: Arpo) -> None:
    table = arpo("tasks", "list", "--suite", "local", "--set", "smoke")
    assert table.returncode == 0
    rows = json.loads(arpo("tasks", "list", "--suite", "local", "--provider", "xvfb", "--json").stdout)
    assert len(rows) >= 12
    assert set(rows[0]) == {"id", "domain", "instruction", "path", "providers"}
    assert all(Path(row["path"]).is_file() for row in rows)
    assert json.loads(arpo("tasks", "list", "--provider", "simulated", "--json").stdout) == []


def test_demonstrations_play_through_http_and_their_scores_decide_the_exit_code(
    arpo: Arpo, tmp_path: Path
) -> None:
    suite = ("--suite", "simulated", "--provider", "simulated")
    played = arpo("tasks", "demo", *suite, "--set", "smoke", "--screenshots", str(tmp_path))
    assert played.returncode == 0, played.stderr
    assert len(list(tmp_path.glob("*/*.png"))) > 4
    assert arpo("tasks", "demo", *suite, "--task", "no-such-task").returncode == 2
