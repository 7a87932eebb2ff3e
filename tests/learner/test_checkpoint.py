import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner import checkpoint
from arpo.learner.checkpoint import CheckpointError
from arpo.learner.learner import Learner
from arpo.replay import ReplayBuffer, RowStore
from arpo.trajectory import GroupMember
from policy_kit import Pictures, conversation, fresh_policy

FOLDER = tempfile.TemporaryDirectory()
ROWS = RowStore(Path(FOLDER.name))
"""Rows are content-addressed, so that the runs of all tests may share them."""


class Run:
    """A learner with a replay buffer and its steps' data."""

    def __init__(self, **options):
        self.policy = fresh_policy(**options)
        section = LearnerSection(lr=1e-3, warmup_steps=3, minibatches=2, micro_batch_rows=2)
        self.learner = Learner(self.policy, section, ReplaySection(), temperature=1.0, seed=0)
        self.replay = ReplayBuffer(ReplaySection(), ROWS)
        self.pictures = Pictures()

    def step(self, number):
        rows = [
            conversation(
                self.policy,
                self.pictures,
                ["Press the button.", "It is done."][: 1 + n % 2],
                score=float((n + number) % 2),
                seed=10 * number + n,
                episode_id=f"{number}/{n}",
                task_id=f"task-{number % 2}",
            )
            for n in range(4)
        ]
        group = self.replay.close_group(rows, random.Random(number))
        return self.learner.step([group], self.pictures.__getitem__)

    def save(self, root, step, **options):
        options = {"keep": 2, "state": {"cursor": {"epoch": 1}, "step": step}} | options
        return checkpoint.save(
            root, step=step, learner=self.learner, replay=self.replay, policy=self.policy, **options
        )

    def load(self, found):
        return checkpoint.load(found, learner=self.learner, replay=self.replay)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_continues_bit_equal(tmp_path, dtype):
    run = Run(dtype=dtype)
    for number in range(2):
        run.step(number)
    run.save(tmp_path, 2)
    uninterrupted = [run.step(number) for number in (2, 3)]

    resumed = Run(dtype=dtype)
    resumed.step(99)  # whatever was there before is replaced
    assert resumed.load(checkpoint.latest(tmp_path)) == {"cursor": {"epoch": 1}, "step": 2}
    again = [resumed.step(number) for number in (2, 3)]

    for before, after in zip(uninterrupted, again, strict=True):
        assert {k: v for k, v in before.items() if "seconds" not in k} == {
            k: v for k, v in after.items() if "seconds" not in k
        }
    for a, b in zip(leaves(run.learner.state_dict()), leaves(resumed.learner.state_dict()), strict=True):
        assert torch.equal(a, b)
    assert run.replay.metrics(0) == resumed.replay.metrics(0)


def leaves(state):
    return torch.utils._pytree.tree_leaves(state)


def test_random_streams_continue(tmp_path):
    run = Run()
    run.save(tmp_path, 1)

    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()

    expected = draw()
    draw()
    run.load(checkpoint.latest(tmp_path))
    assert draw() == expected


def test_the_policy_is_exported_for_transformers(tmp_path):
    run = Run()
    run.step(0)
    saved = run.save(tmp_path, 1)
    model = AutoModelForImageTextToText.from_pretrained(saved.path / checkpoint.HF_FOLDER)
    assert all(map(torch.equal, model.parameters(), run.policy.model.parameters()))


def test_the_newest_checkpoints_are_kept(tmp_path):
    run = Run()
    for step in (1, 2, 3, 10):
        run.save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000010"]
    assert [c.step for c in checkpoint.complete(tmp_path)] == [3, 10]
    assert checkpoint.latest(tmp_path).step == 10


def test_saving_a_step_again_replaces_it(tmp_path):
    run = Run()
    run.save(tmp_path, 1, state={"try": 1})
    run.save(tmp_path, 1, state={"try": 2})
    assert run.load(checkpoint.latest(tmp_path)) == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_there_is_no_checkpoint_where_none_was_saved(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    assert checkpoint.complete(tmp_path) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "hf" / "model.safetensors"),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: next((folder / "tensors").glob("*.distcp")).write_bytes(b""),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: cut(folder / "manifest.json"),
    ],
    ids=["cut short", "file missing", "file empty", "no manifest", "broken manifest"],
)
def test_an_incomplete_checkpoint_is_passed_over(tmp_path, damage):
    run = Run()
    run.save(tmp_path, 1)
    newest = run.save(tmp_path, 2)
    damage(newest.path)
    assert checkpoint.latest(tmp_path).step == 1
    run.load(checkpoint.latest(tmp_path))


@pytest.mark.parametrize(
    "name", ["state.json", "replay/index.json", "tensors/.metadata", "tensors/__0_0.distcp"]
)
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, name):
    run = Run()
    run.step(1)
    saved = run.save(tmp_path, 1)
    path = saved.path / name
    path.write_bytes(b"\0" * path.stat().st_size)  # the size is right, the content is not
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be loaded") as error:
        run.load(saved)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_an_error_that_names_it(tmp_path):
    saved = Run(freeze_vision=True).save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be loaded"):
        Run(freeze_vision=False).load(saved)


SAVER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from test_checkpoint import Run
run = Run()
run.save(Path(sys.argv[1]), 1, keep=100)
print("saved", flush=True)
for step in range(2, 10_000):
    run.save(Path(sys.argv[1]), step, keep=3)
"""


@pytest.mark.parametrize("delay", [0.05, 0.2])
def test_a_killed_save_leaves_the_last_published_checkpoint_loadable(tmp_path, delay):
    here = Path(__file__).parent
    script = SAVER.format(tests=str(here.parent), here=str(here))
    saver = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert saver.stdout.readline() == b"saved\n"
    time.sleep(delay)
    saver.send_signal(signal.SIGKILL)
    saver.wait()
    published = [p for p in tmp_path.iterdir() if p.name.startswith("step-")]
    found = checkpoint.complete(tmp_path)
    assert len(found) == len(published) >= 1
    run = Run()
    assert run.load(checkpoint.latest(tmp_path))["step"] == found[-1].step
    run.save(tmp_path, found[-1].step + 1)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_manifest_names_every_file(tmp_path):
    saved = Run().save(tmp_path, 1)
    files = {str(p.relative_to(saved.path)) for p in saved.path.rglob("*") if p.is_file()}
    assert set(json.loads((saved.path / "manifest.json").read_text())["files"]) == files - {"manifest.json"}


def test_a_group_member_survives_the_replay_buffers_way_through_a_checkpoint(tmp_path):
    run = Run()
    run.step(1)
    run.save(tmp_path, 1)
    resumed = Run()
    resumed.load(checkpoint.latest(tmp_path))
    failures = [
        conversation(run.policy, run.pictures, ["Press."], score=0.0, task_id="task-1") for _ in range(2)
    ]
    expected = run.replay.close_group(failures, random.Random(3))
    assert resumed.replay.close_group(failures, random.Random(3)) == expected
    assert isinstance(expected[0], GroupMember)
    assert expected[0].replayed
