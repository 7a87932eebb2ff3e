"""`arpo train` on several learner ranks: started by itself and by torchrun, killed, and gone on with on fewer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, alive, children, finish, lines, start, wait_for

UNTAUGHT = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "env.screen=[640, 480]", "tasks.suite=simulated",
    "imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false",
    "trainer.tasks_per_step=1", "rollout.group_size=3", "agent.max_pixels=12544",
)  # fmt: skip


def followers(pid: int) -> list[int]:
    """The learner ranks that a run has started."""
    return [
        child
        for child in children(pid)
        if b"arpo.trainer.follower" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def command(folder: Path, *more: str) -> tuple[str, ...]:
    return (*UNTAUGHT, f"run.dir={folder}", "run.name=ranks", *more)


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in lines(folder / "ranks" / "metrics.jsonl")]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_its_name_and_one_rank_or_torchrun_goes_on(tmp_path: Path) -> None:
    process = start(*command(tmp_path, "learner.ranks=2", "trainer.max_steps=50"), OMP_NUM_THREADS="1")
    try:
        wait_for((tmp_path / "ranks" / "checkpoints" / "step-000001").exists)
        (follower,) = followers(process.pid)
        family = children(process.pid)
        os.kill(follower, signal.SIGKILL)
        output = finish(process)
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert "learner rank 1 ended with exit code -9" in output
    assert "Traceback" not in output
    assert alive(family) == []
    summary = json.loads((tmp_path / "ranks" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert "learner rank 1 ended with exit code -9" in summary["reason"]

    done = int(max((tmp_path / "ranks" / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    one = start(*command(tmp_path, "learner.ranks=1", f"trainer.max_steps={done + 1}"))
    output = finish(one)
    assert one.returncode == 0, output
    assert "resuming from" in output
    assert steps(tmp_path)[-1] == done + 1

    two = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "arpo.cli",
            "train", *command(tmp_path, "learner.ranks=2", f"trainer.max_steps={done + 2}"),
        ],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stdout + two.stderr
    assert steps(tmp_path) == list(range(1, done + 3))
    summary = json.loads((tmp_path / "ranks" / "summary.json").read_text())
    assert summary["missing"] == []


@pytest.mark.slow
def test_a_rank_whose_leader_is_killed_ends(tmp_path: Path) -> None:
    process = start(*command(tmp_path, "learner.ranks=2", "trainer.max_steps=50"), OMP_NUM_THREADS="1")
    try:
        wait_for(lambda: steps(tmp_path))
        family = children(process.pid)
        assert followers(process.pid)
    finally:
        process.kill()
    finish(process)
    wait_for(lambda: not alive(family), timeout_s=30)


@pytest.mark.slow
def test_sigterm_on_two_ranks_saves_what_is_finished_and_asks_to_be_resumed(tmp_path: Path) -> None:
    process = start(
        *command(tmp_path, "learner.ranks=2", "trainer.max_steps=50", "trainer.checkpoint_every=40"),
        OMP_NUM_THREADS="1",
    )
    try:
        wait_for(lambda: steps(tmp_path))
        family = children(process.pid)
        process.send_signal(signal.SIGTERM)
        output = finish(process)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert alive(family) == []
    done = steps(tmp_path)[-1]
    assert (tmp_path / "ranks" / "checkpoints" / f"step-{done:06d}").is_dir()


def test_torchrun_with_another_number_of_processes_than_configured_names_the_fix(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "arpo.cli",
            "train", *command(tmp_path, "learner.ranks=2", "trainer.max_steps=1"),
        ],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "torchrun has started 1 processes, but 2 ranks are configured; fix: learner.ranks=1" in done.stderr


def test_a_rank_that_cannot_start_is_named_at_once(tmp_path: Path) -> None:
    """Its interpreter is told to import something that ends it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('RANK') == '1': sys.exit('rank 1 has no GPU')\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = start(*command(tmp_path, "learner.ranks=2", "trainer.max_steps=1"), PYTHONPATH=path)
    output = finish(process)
    assert process.returncode == 1
    assert "rank 1 has no GPU" in output
    assert "learner rank 1 ended with exit code 1; its last words are above" in output
