"""The learner's benchmarks run, and compare the same work. What they measure depends on the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_step_is_timed_and_its_memory_measured_against_plain_transformers() -> None:
    done = run("learner.py", "--shape", "tiny", "--mix", "tiny", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"gradients agree, largest relative difference \d\.\de-0[5-9]", done.stdout), done.stdout
    memory = {}
    for side in ("learner", "plain HF"):
        row = re.search(rf"^{side} +(?:\d+ +){{4}}(\d+) +(\d+)$", done.stdout, re.MULTILINE)
        assert row, done.stdout
        memory[side] = int(row[1])
        assert int(row[2]) > 100  # a process with torch
    # the logits of every position against those of the sampled ones: no neighbour on the machine changes that
    assert memory["learner"] < memory["plain HF"] / 2
    assert "load average" in done.stdout


def test_sides_that_do_different_work_are_not_timed() -> None:
    done = run("learner.py", "--shape", "tiny", "--mix", "tiny", "--repeats", "1", "--break")
    assert done.returncode == 1
    assert "gradients differ by" in done.stderr
    assert "tokens/s" not in done.stdout


def test_without_a_gpu_the_gpu_benchmark_runs_its_tiny_shape(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = ("--shape", "tiny", "--screenshots", "2", "--members", "2", "--steps", "1", "--out", str(out))
    done = run("gpu_learner.py", *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text())
    assert [result["side"] for result in document["results"]] == ["learner", "plain HF"]
    for result in document["results"]:
        assert result["hardware"]
        assert result["tokens_per_s"] > 0
        assert f"{result['side']}, 2 screenshots a trajectory: " in done.stdout
    assert document["compared"]["grad_norm_difference"] < 1e-3


def test_bad_input_is_refused() -> None:
    done = run("gpu_learner.py", "--pixels", "large")
    assert done.returncode == 2
    assert "must look like 1920x1080" in done.stderr
