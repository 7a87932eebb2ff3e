"""What was imported is taken in once, with log-probs that mean something, and never what does not belong here."""

from __future__ import annotations

import pytest
from replay_kit import TOKENIZER, Run, close, picture, replayed, trajectory

from arpo.config.sections import ReplaySection
from arpo.protocol.problems import ConfigError
from arpo.replay import ReplayBuffer, ReplayError
from arpo.replay.folder import InboxEntry
from arpo.replay.index import Stored
from arpo.replay.intake import take_in


class Learner:
    """Gives the sampled tokens of a row -1, -2, ...; remembers whom it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def token_logprobs(self, trajectories, images):
        self.asked += [t.episode_id for t in trajectories]
        assert all(images(image.sha256) for t in trajectories for image in t.images)
        return [[-float(n + 1) for n in range(sum(t.loss_mask))] for t in trajectories]


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path)
    run.screenshots.put(picture("p"))
    return run


def deliver(run: Run, name: str, **changes) -> str:
    imported = trajectory(changes.pop("score", 1.0), name, version=70, **changes)
    sha256 = run.folder.rows.put(imported)
    run.folder.deliver(InboxEntry(tokenizer=TOKENIZER, stored=Stored.of_rollout(imported, sha256, step=9)))
    return sha256


def start(run: Run, buffer: ReplayBuffer, learner: Learner | None = None, **options) -> int:
    options = {"success_above": 0.1, "tokenizer": TOKENIZER, "policy_version": 5, "step": 3} | options
    return take_in(run.folder, buffer, learner or Learner(), run.screenshots.get, **options)


def test_a_sampled_one_keeps_its_log_probs_and_a_script_gets_the_policys(run) -> None:
    deliver(run, "sampled")
    deliver(run, "scripted", sampler="script", logprobs=[0.0] * 5, started_at=200.0)
    buffer, learner = run.buffer(), Learner()
    assert start(run, buffer, learner) == 2
    assert learner.asked == ["scripted"]
    sampled, scripted = (run.folder.rows.get(entry.sha256) for entry in buffer.stored)
    assert sampled.logprobs == trajectory(1.0).logprobs
    assert scripted.logprobs == [0.0, -1.0, 0.0, -2.0, -3.0]
    assert scripted.sampler == "script"
    assert [(e.policy_version, e.step, e.origin) for e in buffer.stored] == [(5, 3, "import")] * 2
    metrics = buffer.metrics(7)
    assert (metrics["imported"], metrics["stored"], metrics["age_max"]) == (2, 0, 2)
    assert replayed(close(buffer, [0.0])) == [0]


def test_it_is_taken_in_once_and_again_by_a_run_that_goes_on_from_before(run) -> None:
    before = run.buffer("own")
    before.save(run.root)
    deliver(run, "imported")
    assert start(run, before) == 1
    assert start(run, before) == 0
    assert len(before.stored) == 2
    after = run.root / "after"
    after.mkdir()
    before.save(after)
    for folder, taken in ((run.root, 1), (after, 0)):
        resumed = run.buffer()
        resumed.load(folder)
        assert start(run, resumed) == taken
        assert resumed.stored == before.stored


def test_one_that_has_left_the_buffer_is_not_taken_in_again(run) -> None:
    deliver(run, "imported")
    buffer = run.buffer(capacity=1)
    assert start(run, buffer) == 1
    close(buffer, [1.0])
    assert start(run, buffer) == 0
    assert [entry.episode_id for entry in buffer.stored] == ["fresh-0"]


def test_one_that_is_stored_already_is_not_stored_twice(run) -> None:
    buffer = run.buffer()
    close(buffer, [1.0], version=70)
    deliver(run, "fresh-0")
    assert start(run, buffer) == 1
    assert len(buffer.stored) == 1
    assert buffer.metrics(0)["imported"] == 0


def test_what_does_not_belong_here_is_refused_with_the_file_to_remove(run) -> None:
    sha256 = deliver(run, "foreign", score=0.5)
    for options, reason in (
        ({"tokenizer": "e" * 64}, "has token ids of another tokenizer than the policy's"),
        ({"success_above": 0.6}, r"has score 0\.5, no success with replay\.success_above=0\.6"),
    ):
        with pytest.raises(
            ConfigError, match=rf"trajectory foreign {reason}; fix: remove .*{sha256}\.json, or"
        ):
            start(run, run.buffer(), **options)
    run.folder.inbox_path(sha256).unlink()
    assert start(run, run.buffer(), tokenizer="e" * 64) == 0


def test_a_damaged_inbox_is_an_error(run) -> None:
    sha256 = deliver(run, "imported")
    run.screenshots.path(trajectory(1.0).images[0].sha256).unlink()
    with pytest.raises(ReplayError, match=r"imported lacks a screenshot: .*; fix: import it again"):
        start(run, run.buffer())
    run.folder.rows.path(sha256).unlink()
    with pytest.raises(ReplayError, match="is missing"):
        start(run, run.buffer())
    run.folder.inbox_path(sha256).write_text("{")
    with pytest.raises(ReplayError, match=r"json is damaged; fix: remove it and import again"):
        start(run, run.buffer())


def test_the_bounds_hold_for_what_is_imported(run) -> None:
    for n in range(5):
        deliver(run, f"e{n}", started_at=float(n))
    buffer = ReplayBuffer(ReplaySection(capacity=2), run.folder.rows)
    assert start(run, buffer) == 5
    assert [entry.episode_id for entry in buffer.stored] == ["e3", "e4"]
    assert buffer.metrics(0)["evicted"] == 3
