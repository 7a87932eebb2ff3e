"""Random histories of a run's replay side against a plain model: what is stored, what is on disk, what comes back."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from statistics import fmean, pstdev

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from replay_kit import TOKENIZER, Run, sha, trajectory

from arpo.config.sections import ReplaySection
from arpo.replay import ReplayBuffer
from arpo.replay.folder import InboxEntry
from arpo.replay.index import Stored
from arpo.replay.intake import take_in

TASKS = st.sampled_from("abc")
SCORES = st.lists(st.sampled_from([0.0, 0.05, 0.15, 1.0]), min_size=1, max_size=4)


class Learner:
    def token_logprobs(self, trajectories, images):
        return [[-0.5] * sum(t.loss_mask) for t in trajectories]


class ReplaySide(RuleBasedStateMachine):
    """Names stand for trajectories: every episode has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.run = Run(self.root)
        self.run.screenshots.put(b"picture p")
        self.stored: list[tuple[str, str]] = []  # (name, task), oldest first
        self.taken: set[str] = set()
        self.inbox: dict[str, str] = {}
        self.checkpoints: dict[int, tuple[list[tuple[str, str]], set[str]]] = {}
        self.number = 0

    @initialize(capacity=st.integers(1, 3), bound=st.integers(2, 6))
    def begin(self, capacity: int, bound: int) -> None:
        self.section = ReplaySection(capacity=capacity, max_trajectories=bound)
        self.buffer = ReplayBuffer(self.section, self.run.folder.rows)

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def add(self, name: str, task: str) -> None:
        self.stored.append((name, task))
        same = [one for one in self.stored if one[1] == task]
        if len(same) > self.section.capacity:
            self.stored.remove(same[0])
        elif len(self.stored) > self.section.max_trajectories:
            self.stored.pop(0)

    @rule(task=TASKS, scores=SCORES, seed=st.integers(0, 99))
    def close_group(self, task: str, scores: list[float], seed: int) -> None:
        names = []
        for _ in scores:
            self.number += 1
            names.append(f"episode-{self.number}")
        fresh = [trajectory(score, name, task) for name, score in zip(names, scores, strict=True)]
        members = self.buffer.close_group(fresh, random.Random(seed))
        expected = list(names)
        candidates = [name for name, of in self.stored if of == task]
        failures = [i for i, score in enumerate(scores) if score <= 0.1]
        if candidates and failures and pstdev(scores) < 0.05 and fmean(scores) < 0.2:
            expected[failures[0]] = random.Random(seed).choice(candidates)
        assert [member.trajectory.episode_id for member in members] == expected
        assert [member.replayed for member in members] == [
            e != n for e, n in zip(expected, names, strict=True)
        ]
        for name, score in zip(names, scores, strict=True):
            if score > 0.1:
                self.add(name, task)

    @rule(task=TASKS, scripted=st.booleans(), late=st.booleans())
    def import_one(self, task: str, scripted: bool, late: bool) -> None:
        self.number += 1
        name = f"episode-{self.number}"
        imported = trajectory(
            1.0,
            name,
            task,
            started_at=float(self.number if late else -self.number),
            sampler="script" if scripted else "policy",
        )
        sha256 = self.run.folder.rows.put(imported)
        entry = Stored.of_rollout(imported, sha256, step=None)
        assert self.run.folder.deliver(InboxEntry(tokenizer=TOKENIZER, stored=entry))
        assert not self.run.folder.deliver(InboxEntry(tokenizer=TOKENIZER, stored=entry))
        self.inbox[name] = task

    @rule(version=st.integers(0, 9))
    def start(self, version: int) -> None:
        """What training does with the inbox when it starts."""

        def age(name: str) -> tuple[float, str]:
            (entry,) = (e.stored for e in self.run.folder.inbox() if e.stored.episode_id == name)
            return entry.stored_at, entry.sha256

        waiting = sorted(self.inbox.keys() - self.taken, key=age)
        for name in waiting:
            self.add(name, self.inbox[name])
            self.taken.add(name)
        taken = take_in(
            self.run.folder, self.buffer, Learner(), self.run.screenshots.get,
            success_above=0.1, tokenizer=TOKENIZER, policy_version=version, step=0,
        )  # fmt: skip
        assert taken == len(waiting)

    @rule()
    def publish(self) -> None:
        self.number += 1
        self.run.publish(self.buffer, self.number)
        self.checkpoints[self.number] = (list(self.stored), set(self.taken))

    @precondition(lambda self: len(self.checkpoints) > 2)
    @rule()
    def prune(self) -> None:
        oldest = min(self.checkpoints)
        del self.checkpoints[oldest]
        shutil.rmtree(self.run.checkpoints / f"step-{oldest:06d}")

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """Killed, and on from any checkpoint that is there."""
        step = data.draw(st.sampled_from(sorted(self.checkpoints)))
        self.buffer = ReplayBuffer(self.section, self.run.folder.rows)
        self.buffer.load(self.run.checkpoints / f"step-{step:06d}" / "replay")
        stored, taken = self.checkpoints[step]
        self.stored, self.taken = list(stored), set(taken)

    @rule()
    def tidy(self) -> None:
        before, needed = self.run.rows(), self.buffer.needed_rows()
        self.run.folder.collect_garbage(needed, self.run.checkpoints)
        after = self.run.rows()
        wanted = needed | {entry.stored.sha256 for entry in self.run.folder.inbox()}
        for step in self.checkpoints:
            other = ReplayBuffer(ReplaySection(), self.run.folder.rows)
            other.load(self.run.checkpoints / f"step-{step:06d}" / "replay")
            wanted |= {entry.sha256 for entry in other.stored}
        assert after == before & wanted
        assert wanted <= after

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert [(entry.episode_id, entry.task_id) for entry in self.buffer.stored] == self.stored
        for entry in self.buffer.stored:
            row = self.run.folder.rows.get(entry.sha256)
            assert row.episode_id == entry.episode_id
            assert row.logprobs[1] == (-0.5 if row.sampler == "script" else -0.25)
        assert self.buffer.screenshots() == ({sha("p")} if self.stored else set())
        metrics = self.buffer.metrics(9)
        assert metrics["size"] == len(self.stored) <= self.section.max_trajectories
        assert metrics["tasks"] == len({task for _, task in self.stored})


ReplaySide.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_replay_side = ReplaySide.TestCase
