"""The learning benchmark runs, goes on where it was stopped, and draws. What it finds is in docs/learning.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "arpo_vs_grpo.py"
COMMITTED = Path(__file__).parents[2] / "docs" / "data" / "arpo_vs_grpo.json"
ARMS = ("arpo", "grpo")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def tiny(out: Path) -> subprocess.CompletedProcess[str]:
    return run("--steps", "2", "--seeds", "1", "--imitation-steps", "4", "--arms", *ARMS, "--out", out)


def colours(path: Path) -> set[object]:
    return {colour for _, colour in Image.open(path).convert("RGB").getcolors(1 << 24)}


@pytest.mark.slow
def test_it_measures_every_arm_from_the_same_start_and_makes_only_missing_runs(tmp_path: Path) -> None:
    first = tiny(tmp_path)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "arpo_vs_grpo.json").read_text())
    assert set(result["runs"]) == set(ARMS)
    for (run_of_arm,) in result["runs"].values():
        assert [record["step"] for record in run_of_arm] == [0, 1, 2]
        assert all(0 <= p <= 1 for record in run_of_arm for p in record["as_shown"])
        assert all(0 <= record["success"] <= 1 for record in run_of_arm[1:])
    starts = [run_of_arm[0]["as_shown"] for (run_of_arm,) in result["runs"].values()]
    assert starts[0] == starts[1]
    assert {(31, 119, 180), (214, 96, 20)} <= colours(tmp_path / "arpo_vs_grpo.png")

    kept = tmp_path / "runs" / "grpo-0.json"
    (tmp_path / "runs" / "arpo-0.json").unlink()
    marked = json.loads(kept.read_text())
    for record in marked[1:]:
        record["success"] = 0.25
    kept.write_text(json.dumps(marked))
    again = tiny(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "arpo seed 0: step 2/2" in again.stdout
    assert "grpo seed 0: step" not in again.stdout
    assert "success 0.25 [0.25, 0.25] after 2 steps, 1 seed(s)" in again.stdout
    other = run("--steps", "3", "--seeds", "1", "--out", tmp_path)
    assert other.returncode == 1
    assert "choose another --out" in other.stderr


def test_the_committed_result_is_whole_and_its_picture_can_be_drawn_again(tmp_path: Path) -> None:
    result = json.loads(COMMITTED.read_text())
    steps = result["settings"]["steps"]
    assert set(result["runs"]) == {"arpo", "arpo-no-importance", "grpo"}
    for seeds in result["runs"].values():
        assert len(seeds) >= 5
        assert all([record["step"] for record in seed] == list(range(steps + 1)) for seed in seeds)
    drawn = run("--plot-only", COMMITTED, "--out", tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert len(colours(tmp_path / "arpo_vs_grpo.png")) > 10


def test_its_help_teaches_and_bad_input_is_refused() -> None:
    assert "goes on with the runs that are missing" in run("--help").stdout
    assert run("--seeds", "0").returncode == 2
