import json
import random
import shutil
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from arpo.checkpoints import folders
from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner import checkpoint, tensors
from arpo.learner.checkpoint import CheckpointError
from arpo.learner.checkpointer import Checkpointer
from arpo.learner.learner import Learner
from arpo.learner.sharding import local
from arpo.replay import ReplayBuffer, RowStore
from arpo.trajectory import GroupMember
from policy_kit import Pictures, conversation, fresh_policy

PICTURES = Pictures()
"""They are kept, as a run's screenshots are: a replayed row needs those of its step."""

FOLDER = tempfile.TemporaryDirectory()
ROWS = RowStore(Path(FOLDER.name))
"""Rows are content-addressed, so that the runs of all tests may share them."""


class Run:
    """A learner with a replay buffer and its steps' data."""

    def __init__(self, **options):
        self.policy = fresh_policy(**options)
        section = LearnerSection(lr=1e-3, warmup_steps=3, minibatches=2, max_row_tokens=400)
        self.learner = Learner(self.policy, section, ReplaySection(), temperature=1.0, seed=0)
        self.replay = ReplayBuffer(ReplaySection(), ROWS)
        self.pictures = PICTURES

    def rows(self, number):
        return [
            conversation(
                self.policy,
                self.pictures,
                ["Press the button.", "It is done."][: 1 + n % 2],
                score=float((n + number) % 2) if number % 4 < 2 else 0.0,
                format=-float(n % 3 == 2),
                seed=10 * number + n,
                episode_id=f"{number}/{n}",
                task_id=f"task-{number % 2}",
            )
            for n in range(4)
        ]

    def step(self, number):
        group = self.replay.close_group(self.rows(number), random.Random(number))
        return self.learner.step([group], self.pictures.__getitem__)

    def begin(self, saver, step, state=None):
        captured = checkpoint.capture(state or {"cursor": {"epoch": 1}, "step": step})
        saver.save(step, captured, learner=self.learner, replay=self.replay, policy=self.policy)

    def save(self, root, step, *, state=None, keep=2, success=None):
        saver = Checkpointer(root, keep=keep, success=success)
        self.begin(saver, step, state)
        saver.finish()
        return folders.latest(root)

    def load(self, found):
        return checkpoint.load(found, learner=self.learner, replay=self.replay)

    def tensors(self):
        return [leaf.clone() for leaf in leaves(self.learner.state_dict())]


def leaves(state):
    return [local(leaf) for leaf in torch.utils._pytree.tree_leaves(state)]


def equal(some, others):
    return all(map(torch.equal, some, others))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_continues_bit_equal(tmp_path, dtype):
    run = Run(dtype=dtype)
    for number in range(2):
        run.step(number)
    run.save(tmp_path, 2)
    uninterrupted = [run.step(number) for number in (2, 3)]

    resumed = Run(dtype=dtype)
    resumed.step(99)  # whatever was there before is replaced
    assert resumed.load(folders.latest(tmp_path)) == {"cursor": {"epoch": 1}, "step": 2}
    again = [resumed.step(number) for number in (2, 3)]

    for before, after in zip(uninterrupted, again, strict=True):
        assert {k: v for k, v in before.items() if "seconds" not in k} == {
            k: v for k, v in after.items() if "seconds" not in k
        }
    assert equal(run.tensors(), resumed.tensors())
    assert run.replay.metrics(0) == resumed.replay.metrics(0)


def test_random_streams_continue(tmp_path):
    run = Run()
    run.save(tmp_path, 1)

    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()

    expected = draw()
    draw()
    run.load(folders.latest(tmp_path))
    assert draw() == expected


class HeldUp:
    """The learner on a disk that does not write before it may."""

    def __init__(self, learner):
        self.learner = learner
        self.go_on = threading.Event()

    def begin_save(self, folder):
        written, state = Future(), tensors.begin_save(self.learner.state_dict(), folder / "staged")

        def write():
            self.go_on.wait()
            state.result()
            for path in (folder / "staged").iterdir():
                path.rename(folder / path.name)
            (folder / "staged").rmdir()
            written.set_result(None)

        threading.Thread(target=write).start()
        return written


def test_a_step_during_a_save_changes_nothing_in_what_is_written(tmp_path):
    run = Run()
    run.step(0)
    then, stored = run.tensors(), list(run.replay.stored)
    slow, saver = HeldUp(run.learner), Checkpointer(tmp_path, keep=2)
    saver.save(1, checkpoint.capture({}), learner=slow, replay=run.replay, policy=run.policy)
    run.step(1)
    assert not equal(then, run.tensors())
    assert folders.complete(tmp_path) == [], "nothing is published before everything is written"
    slow.go_on.set()
    saver.finish()

    saved = Run()
    saved.load(folders.latest(tmp_path))
    assert equal(then, saved.tensors())
    assert list(saved.replay.stored) == stored


def test_the_copy_is_made_before_begin_save_returns(tmp_path, monkeypatch):
    # the writer is held up at its first call, when the state has been changed long since
    started = threading.Event()
    write = tensors.save_tensors
    monkeypatch.setattr(tensors, "save_tensors", lambda *a, **k: (started.wait(), write(*a, **k)))
    state = {"a": torch.ones(3), "inner": {"b": torch.zeros((), dtype=torch.long)}}
    written = tensors.begin_save(state, tmp_path)
    state["a"].fill_(7)
    state["inner"]["b"] += 5
    started.set()
    written.result()
    into = {"a": torch.empty(3), "inner": {"b": torch.empty((), dtype=torch.long)}}
    tensors.load(into, tmp_path)
    assert into["a"].tolist() == [1, 1, 1]
    assert int(into["inner"]["b"]) == 0
    assert tensors.read(tmp_path, "inner").keys() == {"b"}
    with pytest.raises(KeyError):
        tensors.read(tmp_path, "inn")


def test_a_checkpoint_holds_the_policy_without_its_weights(tmp_path):
    saved = Run().save(tmp_path, 1)
    sizes = {path.name: path.stat().st_size for path in (saved.path / checkpoint.POLICY).iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"} <= set(
        sizes
    )
    assert sum(sizes.values()) < 300_000


def test_the_newest_checkpoints_are_kept(tmp_path):
    run = Run()
    for step in (1, 2, 3, 10):
        run.save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000010"]
    assert [c.step for c in folders.complete(tmp_path)] == [3, 10]
    assert folders.latest(tmp_path).step == 10


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path):
    run = Run()
    success = {1: 0.5, 2: 0.75, 3: 0.75, 4: 0.25}
    there = []
    for step in range(1, 7):
        known = {s: value for s, value in success.items() if s < step}  # a step is evaluated after its save
        run.save(tmp_path, step, keep=1, success=lambda known=known: known)
        there.append([c.step for c in folders.complete(tmp_path)])
    assert there == [[1], [1, 2], [2, 3], [3, 4], [3, 5], [3, 6]]
    assert folders.best(folders.complete(tmp_path), success).step == 3
    assert folders.best(folders.complete(tmp_path), {}) is None


def test_saving_a_step_again_replaces_it(tmp_path):
    run = Run()
    run.save(tmp_path, 1, state={"try": 1})
    run.save(tmp_path, 1, state={"try": 2})
    assert run.load(folders.latest(tmp_path)) == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_kill_while_a_checkpoint_is_replaced_costs_neither(tmp_path):
    run = Run()
    saved = run.save(tmp_path, 1, state={"try": 1})
    # as a kill leaves it between the two renames: the old one aside, the new one not yet there, an older one half removed
    for hidden, inside in ((".step-000001.abc", checkpoint.REPLACED), (".step-000000.def", "pruned")):
        (tmp_path / hidden).mkdir()
        shutil.copytree(saved.path, tmp_path / hidden / inside)
    shutil.rmtree(saved.path)
    (tmp_path / ".step-000001.new").mkdir()
    checkpoint.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert run.load(folders.latest(tmp_path)) == {"try": 1}


def test_there_is_no_checkpoint_where_none_was_saved(tmp_path):
    assert folders.latest(tmp_path / "nothing") is None
    assert folders.complete(tmp_path) == []
    assert checkpoint.newest_sound(tmp_path, lambda *passed: pytest.fail("nothing is there")) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def spoil(path):
    """The size is right, the content is not."""
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "policy" / "tokenizer.json"),
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
    assert folders.latest(tmp_path).step == 1
    run.load(folders.latest(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["state.json", "policy/config.json", "replay/index.json", "tensors/.metadata", "tensors/__0_0.distcp"],
)
def test_of_a_damaged_one_the_next_older_is_found_and_it_is_said(tmp_path, name):
    run = Run()
    run.save(tmp_path, 1)
    newest = run.save(tmp_path, 2)
    spoil(newest.path / name)
    said = []
    assert checkpoint.newest_sound(tmp_path, lambda *passed: said.append(passed)).step == 1
    assert said == [(newest, f"{name} is not as it was written")]

    spoil(tmp_path / "step-000001" / name)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged; fix: "):
        checkpoint.newest_sound(tmp_path, lambda *passed: None)


@pytest.mark.parametrize("name", ["state.json", "tensors/.metadata", "tensors/__0_0.distcp"])
def test_a_checkpoint_that_cannot_be_loaded_is_an_error_that_names_it(tmp_path, name):
    run = Run()
    run.step(1)
    saved = run.save(tmp_path, 1)
    spoil(saved.path / name)
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be loaded") as error:
        run.load(saved)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_an_error_that_names_it(tmp_path):
    saved = Run(freeze_vision=True).save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be loaded"):
        Run(freeze_vision=False).load(saved)


@pytest.mark.parametrize("where", ["tensors", "replay"])
def test_a_save_that_fails_is_an_error_of_the_next_call_and_the_older_one_stands(tmp_path, where):
    run = Run()
    run.step(0)
    before = run.tensors()
    run.save(tmp_path, 1)
    saver = Checkpointer(tmp_path, keep=1)

    class FullDisk:
        def begin_save(self, folder):
            folder.rmdir()
            folder.write_bytes(b"")  # DCP finds a file where its folder should be
            return tensors.begin_save(run.learner.state_dict(), folder)

        def save(self, folder):
            raise OSError(28, "No space left on device")

    run.step(1)
    learner, replay = (FullDisk(), run.replay) if where == "tensors" else (run.learner, FullDisk())

    def save_twice():
        saver.save(2, checkpoint.capture({}), learner=learner, replay=replay, policy=run.policy)
        run.begin(saver, 3)

    with pytest.raises(
        CheckpointError, match=r"step-000002 could not be written: .*older ones stand; fix: "
    ) as error:
        save_twice()
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"], "what was half written makes room"
    found = Run()
    found.load(folders.latest(tmp_path))
    assert equal(before, found.tensors())
    saver.finish()  # said once; the run may go on if it likes
    run.begin(saver, 3)
    saver.finish()
    assert folders.latest(tmp_path).step == 3


def test_the_manifest_names_every_file(tmp_path):
    saved = Run().save(tmp_path, 1)
    files = {str(p.relative_to(saved.path)) for p in saved.path.rglob("*") if p.is_file()}
    assert set(json.loads((saved.path / "manifest.json").read_text())["files"]) == files - {"manifest.json"}


def test_a_group_member_survives_the_replay_buffers_way_through_a_checkpoint(tmp_path):
    run = Run()
    run.step(1)
    run.save(tmp_path, 1)
    resumed = Run()
    resumed.load(folders.latest(tmp_path))
    failures = [
        conversation(run.policy, run.pictures, ["Press."], score=0.0, task_id="task-1") for _ in range(2)
    ]
    expected = run.replay.close_group(failures, random.Random(3))
    assert resumed.replay.close_group(failures, random.Random(3)) == expected
    assert isinstance(expected[0], GroupMember)
    assert expected[0].replayed
