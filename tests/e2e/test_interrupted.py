"""`arpo train` interrupted by SIGKILL, SIGTERM, Ctrl-C and a full disk: what it leaves, says and goes on from."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, alive, children, finish, lines, start, trajectories, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arpo.checkpoints import folders
from arpo.learner import checkpoint, tensors
from arpo.replay import ReplayFolder
from arpo.replay.index import Index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a run is started up to five times
Arpo = Callable[..., subprocess.CompletedProcess[str]]
# one desktop: the engine's batches are the same in every run, so that numbers can be compared to the last digit
SMALL = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "env.desktops=1", "env.screen=[640, 480]",
    "tasks.suite=simulated", "trainer.tasks_per_step=2", "trainer.eval_repeats=1", "trainer.eval_before=false",
    "rollout.group_size=3", "imitation.steps=30", "imitation.target_prob=0.3", "agent.max_pixels=12544",
)  # fmt: skip
TIMED = {"started_at", "duration_s", "timings", "operations"}
CLOCKED = ("seconds", "utilisation", "engine_requests", "rss", "attempt")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks and the run `warm`, which has its warm start behind it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "two.json").write_text(
        json.dumps({"calculator": ["calculator-product"], "files": ["files-delete"]})
    )
    command = [sys.executable, "-m", "arpo.cli", "imitate", *arguments(folder, "warm")]
    subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, timeout=240)
    return folder


def arguments(folder: Path, name: str, *more: str) -> tuple[str, ...]:
    return (*SMALL, f"run.dir={folder}", f"run.name={name}", f"tasks.set={folder}/two.json", *more)


def of_warm(folder: Path, name: str, *more: str) -> tuple[Path, tuple[str, ...]]:
    """A run that goes on from the warm start: its directory, its command line."""
    shutil.copytree(folder / "warm", folder / name)
    return folder / name, arguments(folder, name, *more)


def untimed(value: Any) -> Any:
    """A document without what a clock says."""
    if isinstance(value, dict):
        return {
            key: untimed(inner)
            for key, inner in value.items()
            if key not in TIMED and not any(word in key for word in CLOCKED)
        }
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def newest(run: Path) -> folders.Checkpoint:
    found = folders.latest(run / "checkpoints")
    assert found is not None
    return found


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run has come to, weights apart."""
    saved = newest(run)
    rows = ReplayFolder(run / "replay").rows
    # a row's hash is of its clock's readings too, so rows are compared by what they hold
    replay = [
        (entry.step, untimed(rows.get(entry.sha256).model_dump(mode="json")))
        for entry in Index.read(saved.path / "replay").stored
    ]
    return {
        "step": saved.step,
        "metrics": untimed(lines(run / "metrics.jsonl")),
        "evaluations": {p.name: json.loads(p.read_text()) for p in (run / "evaluations").glob("*.json")},
        "replay": replay,
    }


def assert_same(run: Path, whole: Path) -> None:
    """Losses, evaluations, replay content and every tensor, bit by bit."""
    assert outcome(run) == outcome(whole)
    for part in ("model", "optimizer"):
        some, others = (tensors.read(newest(r).path / "tensors", part) for r in (run, whole))
        assert some.keys() == others.keys()
        assert all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(scope="module")
def whole(warm: Path) -> Path:
    """A run of three steps that nothing interrupts."""
    run, command = of_warm(warm, "whole", "trainer.max_steps=3", "trainer.eval_every=2")
    process = start(*command)
    output = finish(process)
    assert process.returncode == 0, output
    rows = lines(run / "metrics.jsonl")
    assert any(row["learner/grad_norm"] > 0 for row in rows), "comparisons would show nothing"
    assert outcome(run)["replay"], "nor would they of the replay buffer"
    return run


def test_a_run_killed_at_random_points_ends_as_one_that_was_not(warm: Path, whole: Path) -> None:
    run, command = of_warm(warm, "killed", "trainer.max_steps=3", "trainer.eval_every=2")
    rng = random.Random(4)
    for moment in ("trajectories/step-000001.jsonl", "metrics.jsonl", "trajectories/step-000003.jsonl"):
        process = start(*command)
        wait_for((run / moment).exists, 240)
        time.sleep(rng.uniform(0, 1.5))  # behind the metrics come save, evaluation and the next rollout
        family = children(process.pid)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        wait_for(lambda family=family: not alive(family), 30)
    process = start(*command)
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming" in output
    assert_same(run, whole)
    # the warm start, three that were killed, and the last
    assert json.loads((run / "summary.json").read_text())["attempts"] == 5
    taken = [row["attempt"] for row in lines(run / "metrics.jsonl")]
    assert taken == sorted(taken)
    assert {row["attempt"] for row in lines(run / "attempts.jsonl")} == {1, 2, 3, 4, 5}


def test_sigterm_saves_the_last_finished_step_and_asks_to_be_resumed(warm: Path, whole: Path) -> None:
    # no checkpoint is due before the last step: the one of step 1 is there only because of the signal
    every = ("trainer.max_steps=3", "trainer.eval_every=2", "trainer.checkpoint_every=3")
    run, command = of_warm(warm, "terminated", *every)
    process = start(*command)
    wait_for((run / "trajectories" / "step-000002.jsonl").exists, 240)
    family = children(process.pid)
    asked = time.monotonic()
    process.terminate()
    time.sleep(0.2)
    process.terminate()  # a second one is patient
    output = finish(process, 60)
    assert time.monotonic() - asked < 25
    assert process.returncode == 75, output
    assert output.strip().splitlines()[-1] == "terminated: step-000001 is saved; the same command goes on"
    assert "Traceback" not in output
    assert not alive(family)
    assert [c.step for c in folders.complete(run / "checkpoints")] == [0, 1]
    process = start(*command)
    output = finish(process)
    assert process.returncode == 0, output
    assert_same(run, whole)
    changes = json.loads((run / "summary.json").read_text())["config_changes"]
    assert changes[0] == "after step 0: run.name: warm → terminated"
    assert "after step 0: trainer.checkpoint_every: 1 → 3" in changes
    assert all(change.startswith("after step 0: ") for change in changes), "nothing was changed later"


def test_ctrl_c_saves_too_and_exits_with_130(warm: Path) -> None:
    run, command = of_warm(warm, "stopped", "trainer.max_steps=9", "trainer.checkpoint_every=9")
    process = start(*command)
    wait_for((run / "metrics.jsonl").exists, 240)
    process.send_signal(signal.SIGINT)
    output = finish(process, 60)
    assert process.returncode == 130, output
    step = len(lines(run / "metrics.jsonl"))
    assert output.strip().splitlines()[-1] == f"stopped: step-{step:06d} is saved; the same command goes on"
    assert newest(run).step == step


def test_sigterm_while_torch_is_loaded_asks_to_be_resumed_as_well(tmp_path: Path) -> None:
    process = start(*SMALL, f"run.dir={tmp_path}")
    assert process.stdout is not None
    assert "loading torch" in process.stdout.readline()
    process.terminate()
    output = finish(process, 60)
    assert process.returncode == 75, output
    assert "Traceback" not in output


def test_a_save_that_fails_ends_the_run_with_1_and_the_older_checkpoint_stands(warm: Path) -> None:
    run, command = of_warm(warm, "full", "trainer.max_steps=3")
    before = newest(run)
    # a disk that takes 2 MB a file stands for a full one: all but the tensors are smaller
    process = subprocess.run(
        [sys.executable, "-m", "arpo.cli", "train", *command],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("error: checkpoint "), process.stderr
    assert "step-000001 could not be written" in last
    assert "older ones stand" in last
    assert [c.step for c in folders.complete(run / "checkpoints")] == [0]
    assert checkpoint.newest_sound(run / "checkpoints", lambda *passed: pytest.fail(str(passed))) == before
    assert not list((run / "checkpoints").glob(".step-*"))


def test_a_damaged_newest_checkpoint_is_passed_over_and_counted(warm: Path, whole: Path) -> None:
    run = warm / "damaged"
    shutil.copytree(whole, run)
    data = next((newest(run).path / "tensors").glob("*.distcp"))
    with data.open("r+b") as file:  # one flipped bit in the middle of the weights
        file.seek(data.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    process = start(*arguments(warm, "damaged", "trainer.max_steps=3", "trainer.eval_every=2"))
    output = finish(process)
    assert process.returncode == 0, output
    assert "step-000003 is damaged" in output
    assert "resuming from" in output
    assert json.loads((run / "summary.json").read_text())["damaged_checkpoints"] == 1
    assert {row["checkpoint/damaged"] for row in lines(run / "metrics.jsonl")} == {0, 1}
    assert (run / "checkpoints" / "damaged-step-000003").exists()
    assert trajectories(run)


def test_a_checkpoint_is_exported_and_evaluated_by_name(arpo: Arpo, whole: Path, tmp_path: Path) -> None:
    exported = arpo(
        "export", str(whole), str(tmp_path / "model"), "--checkpoint", "best", "--dtype", "bfloat16"
    )
    assert exported.returncode == 0, exported.stderr
    assert "bfloat16" in exported.stdout
    program = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
tokenizer, images = AutoTokenizer.from_pretrained(sys.argv[1]), AutoImageProcessor.from_pretrained(sys.argv[1])
print(model.dtype, type(model).__name__, len(tokenizer), type(images).__name__)
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")], capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("torch.bfloat16 Qwen2_5_VLForConditionalGeneration")

    again = arpo("export", str(whole), str(tmp_path / "model"))
    assert again.returncode == 2
    assert "fix: name another one" in again.stderr
    missing = arpo("export", str(whole), str(tmp_path / "other"), "--checkpoint", "step-77")
    assert missing.returncode == 2
    assert "has no checkpoint step-77; fix: " in missing.stderr
    assert arpo("export", str(tmp_path), str(tmp_path / "other")).returncode == 2
    assert not (tmp_path / "other").exists()

    run = arguments(whole.parent, "whole")
    evaluated = arpo("evaluate", *run, "--checkpoint", "step-2", "--label", "second")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "evaluating" in evaluated.stderr
    assert "step-000002" in evaluated.stderr
    assert json.loads((whole / "evaluations" / "second.json").read_text())["step"] == 2
    (whole / "evaluations" / "second.json").unlink()


def test_tensorboard_shows_every_step_once_after_a_kill_that_lost_some(tmp_path: Path) -> None:
    untaught = (
        "imitation.enabled=false", "trainer.eval_after=false", "trainer.tasks_per_step=1", "trainer.checkpoint_every=3",
        f"run.dir={tmp_path}", "run.name=drawn",
    )  # fmt: skip
    run = tmp_path / "drawn"
    process = start(*SMALL, *untaught, "trainer.max_steps=60", OMP_NUM_THREADS="1")
    try:
        wait_for(lambda: len(lines(run / "metrics.jsonl")) % 3 and newest_step(run))
    finally:
        process.kill()
    finish(process)
    saved, done = newest_step(run), len(lines(run / "metrics.jsonl"))
    killed = time.time()
    process = start(*SMALL, *untaught, f"trainer.max_steps={done + 1}", OMP_NUM_THREADS="1")
    output = finish(process)
    assert process.returncode == 0, output
    events = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("rollout/score")
    assert [event.step for event in events] == list(range(1, done + 2))
    # the step that it went on from is written again, those after it are made again
    assert [event.step for event in events if event.wall_time > killed] == list(range(saved, done + 2))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["state"], summary["version_changes"]) == ("finished", [])
    assert summary["version"] == json.loads((run / "version.json").read_text())
    assert summary["peak_rss_gib"] >= max(row["driver/rss_gib"] for row in lines(run / "metrics.jsonl")) > 0.1


def newest_step(run: Path) -> int:
    saved = folders.latest(run / "checkpoints")
    return saved.step if saved else 0
