"""Bad input ends in one line that says what and how to fix it, with exit code 2 and no traceback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Arpo = Callable[..., subprocess.CompletedProcess[str]]
SMOKE = "config=configs/smoke_cpu.yaml"


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that was refused."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config=configs/no_such.yaml"], ["no_such.yaml", "configs/smoke_cpu.yaml"]),
        ([SMOKE, "learner.learning_rate=1"], ["learner.learning_rate", "lr"]),
        ([SMOKE, "rollout.group_sise=4"], ["group_sise", "group_size"]),
        ([SMOKE, "trainer.tasks_per_step=999"], ["999", "tasks_per_step"]),
        ([SMOKE, "learner.max_row_tokens=64"], ["max_row_tokens", "screenshot"]),
        ([SMOKE, "learner.minibatches=7"], ["minibatches", "divide"]),
        ([SMOKE, "trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        ([SMOKE, "tasks.suite=no-such-suite"], ["no-such-suite", "local"]),
        (["worker.rollout.n=8", SMOKE], ["worker.rollout.n", "rollout.group_size"]),
        ([SMOKE, "nonsense"], ["nonsense"]),
    ],
)
def test_training_refuses_bad_input_before_a_model_is_loaded(
    arpo: Arpo, arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    line = refused(arpo("train", *arguments, f"run.dir={tmp_path}"))
    assert all(word in line for word in words), line
    assert not any(tmp_path.iterdir())


def test_training_says_which_packages_are_missing(arpo: Arpo, tmp_path: Path) -> None:
    line = refused(arpo("train", SMOKE, f"run.dir={tmp_path}", "env.provider=xvfb", PATH="/nonexistent"))
    assert "Xvfb" in line
    assert "apt-get install" in line


def test_a_task_file_with_a_wrong_evaluator_is_refused_with_file_field_and_reason(
    arpo: Arpo, tmp_path: Path
) -> None:
    folder = tmp_path / "suite" / "examples" / "os"
    folder.mkdir(parents=True)
    task = {
        "id": "a",
        "instruction": "x",
        "config": [],
        "evaluator": {"func": "exact_macth", "result": {"type": "rule"}},
    }
    (folder / "a.json").write_text(json.dumps(task))
    line = refused(
        arpo("train", SMOKE, f"run.dir={tmp_path}/runs", f"tasks.suite={tmp_path}/suite", "tasks.set=all")
    )
    assert all(word in line for word in ("a.json", "evaluator.func", "exact_macth", "exact_match")), line
    result = arpo("tasks", "validate", "--suite", str(tmp_path / "suite"))
    assert result.returncode == 2
    assert "exact_match" in result.stdout


def test_help_teaches_and_usage_errors_exit_with_2(arpo: Arpo) -> None:
    overview = arpo("--help")
    assert overview.returncode == 0
    assert all(name in overview.stdout for name in ("train", "imitate", "evaluate", "doctor", "tasks"))
    assert arpo("no-such-command").returncode == 2
