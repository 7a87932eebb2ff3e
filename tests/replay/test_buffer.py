from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_kit import Run, close, group, replayed, sha, trajectory

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.replay import ReplayError


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_success_takes_the_place_of_one_failure_in_a_group_that_failed(run):
    fresh = group([0.0, 0.0, 0.0])
    members = run.buffer("stored").close_group(fresh, random.Random(0))
    assert replayed(members) == [0]
    assert members[0].trajectory.episode_id == "stored"
    assert members[0].trajectory.logprobs == trajectory(1.0).logprobs
    assert [m.trajectory for m in members[1:]] == fresh[1:]


@pytest.mark.parametrize(
    ("scores", "injected"),
    [
        ([0.0, 0.0, 0.0, 0.0], True),
        ([0.0, 0.0, 0.0, 1.0], False),  # deviation 0.43
        ([0.0, 0.0, 0.0, 0.1], True),  # deviation 0.043 over n; 0.05 over n - 1
        ([0.0, 0.0, 0.0, 0.12], False),  # deviation 0.052
        ([1.0, 1.0, 1.0], False),  # equal, but good
        ([0.2, 0.2, 0.2], False),  # mean not below 0.2
        ([0.19, 0.19], False),  # mean below 0.2, but none of them failed
        ([0.1, 0.19], True),  # the one at 0.1 failed
        ([0.0], True),
        ([], False),
    ],
)
def test_the_rule_is_that_of_the_published_code(run, scores, injected):
    members = close(run.buffer("stored"), scores)
    assert bool(replayed(members)) == injected
    assert len(members) == len(scores)


def test_the_first_failure_is_replaced_never_a_success(run):
    members = close(run.buffer("stored"), [0.19, 0.1, 0.1])
    assert replayed(members) == [1]


def test_other_thresholds_are_respected(run):
    section = {"success_above": 0.6, "inject_std_below": 0.3, "inject_mean_below": 0.5}
    buffer = run.buffer("stored", **section)
    assert replayed(close(buffer, [0.5, 0.0])) == [0]
    assert replayed(close(buffer, [0.5, 0.5])) == []
    assert buffer.metrics(0)["size"] == 1  # 0.5 is no success here


def test_without_a_stored_success_the_group_stays_as_it_is(run):
    assert replayed(close(run.buffer(), [0.0, 0.0])) == []
    assert replayed(close(run.buffer("stored"), [0.0, 0.0], task="another")) == []


def test_a_group_never_gets_its_own_success_back(run):
    buffer = run.buffer(inject_std_below=2.0, inject_mean_below=1.0)
    assert replayed(close(buffer, [1.0, 0.0])) == []
    assert replayed(close(buffer, [1.0, 0.0])) == [1]


def test_fresh_successes_are_stored_and_a_replayed_one_is_not_stored_again(run):
    buffer = run.buffer("stored")
    close(buffer, [0.0, 0.0])
    close(buffer, [0.0, 0.0])
    assert buffer.metrics(0)["size"] == 1
    close(buffer, [1.0, 0.11, 0.1, 0.0])
    assert buffer.metrics(0)["size"] == 3


def test_the_oldest_leaves_a_full_buffer_first_and_tasks_do_not_push_each_other_out(run):
    buffer = run.buffer("a", "b", "c", capacity=2)
    close(buffer, [1.0, 1.0, 1.0], task="other")
    drawn = {close(buffer, [0.0], seed)[0].trajectory.episode_id for seed in range(40)}
    assert drawn == {"b", "c"}


def test_the_stored_success_is_drawn_uniformly(run):
    names = [f"s{n}" for n in range(8)]
    buffer, rng = run.buffer(*names), random.Random(1)
    drawn = Counter(buffer.close_group(group([0.0]), rng)[0].trajectory.episode_id for _ in range(4000))
    assert set(drawn) == set(names)
    # five standard deviations of a binomial with 4000 draws of 1/8
    assert all(abs(count - 500) < 105 for count in drawn.values())


def test_off_neither_injects_nor_stores(run):
    buffer = run.buffer(rule="off")
    assert replayed(close(buffer, [1.0, 0.0])) == []
    assert replayed(close(buffer, [0.0, 0.0])) == []
    assert buffer.metrics(0)["size"] == 0


@pytest.mark.parametrize("rule", ["arpo", "off"])
def test_an_invalid_trajectory_is_an_error(run, rule):
    fault = ProblemError(ProblemCode.DESKTOP_LOST, "gone").problem
    buffer = run.buffer(rule=rule)
    for invalid in (trajectory(None), trajectory(1.0, problem=fault)):
        with pytest.raises(ValueError, match="invalid trajectory"):
            buffer.close_group([trajectory(1.0), invalid], random.Random(0))
    assert buffer.metrics(0)["size"] == 0


def test_a_group_of_two_tasks_is_an_error(run):
    with pytest.raises(ValueError, match="one task"):
        run.buffer().close_group([trajectory(1.0), trajectory(1.0, task="b")], random.Random(0))


def test_ages_are_counted_in_policy_versions_and_events_since_the_last_look(run):
    buffer = run.buffer(capacity=2)
    close(buffer, [1.0], version=2)
    close(buffer, [1.0], version=5, task="other")
    close(buffer, [0.0, 0.0], version=6)
    close(buffer, [0.0, 0.0], version=6, task="other")
    assert buffer.metrics(7) == {
        "size": 2, "tasks": 2, "injected": 2, "stored": 2, "imported": 0, "evicted": 0,
        "version_min": 2, "version_max": 5, "age_mean": 3.5, "age_max": 5,
        "injected_age_mean": 3.5, "injected_age_max": 5,
    }  # fmt: skip
    close(buffer, [1.0, 1.0], version=8)
    metrics = buffer.metrics(9)
    assert (metrics["injected"], metrics["stored"], metrics["evicted"]) == (0, 2, 1)
    assert (metrics["injected_age_mean"], metrics["injected_age_max"], metrics["age_max"]) == (0, 0, 4)
    assert set(run.buffer().metrics(3).values()) == {0}


def test_the_bound_over_all_tasks_evicts_the_oldest_of_all(run):
    buffer = run.buffer(capacity=2, max_trajectories=3)
    for task in ("a", "b", "a", "c", "a"):
        close(buffer, [1.0], task=task)
    # the third of `a` is over the task's capacity: its own oldest had left for `c` before
    assert [entry.task_id for entry in buffer.stored] == ["a", "c", "a"]
    assert buffer.metrics(0)["evicted"] == 2


def test_what_is_known_of_a_stored_trajectory(run):
    buffer = run.buffer()
    success = trajectory(0.75, "e", version=3)
    buffer.close_group([success], random.Random(0), step=7)
    (entry,) = buffer.stored
    assert entry.sha256 in run.rows()
    assert entry.model_dump(exclude={"sha256"}) == {
        "episode_id": "e", "task_id": "task", "domain": "d", "score": 0.75, "policy_version": 3, "step": 7,
        "stored_at": 101.5, "turns": 2, "tokens": 5, "images": (sha("p"),), "sampler": "policy", "origin": "rollout",
    }  # fmt: skip


def test_the_screenshots_that_it_needs_are_listed(run):
    buffer = run.buffer()
    close(buffer, [1.0], shown="a")
    close(buffer, [1.0, 0.0], shown="b", task="other")
    close(buffer, [0.0], shown="c")
    assert buffer.screenshots() == {sha("a"), sha("b")}


SCORES = st.lists(st.sampled_from([0.0, 0.05, 0.15, 1.0]), max_size=5)


@given(st.lists(st.tuples(st.sampled_from("abc"), SCORES), max_size=12), st.integers(1, 3))
def test_a_restored_buffer_behaves_as_the_saved_one(tmp_path_factory, history, capacity):
    run = Run(tmp_path_factory.mktemp("run"))
    saved = run.buffer(capacity=capacity)
    for task, scores in history:
        close(saved, scores, task=task)
    saved.save(run.root)
    restored = run.buffer("left over", capacity=capacity)
    restored.load(run.root)
    assert restored.stored == saved.stored
    assert restored.screenshots() == saved.screenshots()
    for task in "abc":
        for seed in range(3):
            assert close(restored, [0.0, 0.0], seed, task=task) == close(saved, [0.0, 0.0], seed, task=task)


def test_events_that_no_metrics_have_told_are_saved(run):
    buffer = run.buffer("a", "b", capacity=1)
    buffer.save(run.root)
    restored = run.buffer(capacity=1)
    restored.load(run.root)
    assert restored.metrics(0) == buffer.metrics(0)


def test_a_smaller_capacity_keeps_the_latest_and_counts_the_others(run):
    run.buffer("a", "b", "c").save(run.root)
    smaller = run.buffer(capacity=1)
    smaller.load(run.root)
    assert close(smaller, [0.0])[0].trajectory.episode_id == "c"
    assert smaller.metrics(0)["evicted"] == 2


def test_an_index_names_rows_and_holds_none(run):
    run.buffer("a").save(run.root)
    assert "token_ids" not in (run.root / "index.json").read_text()


def test_loading_what_is_not_there_or_broken_is_an_error(run):
    with pytest.raises(OSError, match=r"index\.json"):
        run.buffer().load(run.root)
    (run.root / "index.json").write_text('{"stored"')
    with pytest.raises(ValueError, match="JSON"):
        run.buffer().load(run.root)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "bits flipped": lambda path: path.write_bytes(
        bytes([*path.read_bytes()[:40], path.read_bytes()[40] ^ 255, *path.read_bytes()[41:]])
    ),
    "another row": lambda path: path.write_bytes(
        next(p for p in path.parents[1].glob("*/*") if p != path).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_row_is_an_error_when_it_is_loaded_and_when_it_is_injected(run, damage):
    buffer = run.buffer("a")
    close(buffer, [1.0], task="other")
    buffer.save(run.root)
    path = run.folder.rows.path(buffer.stored[0].sha256)
    damage(path)
    with pytest.raises(ReplayError, match=rf"{path.name} is (missing|damaged).*; fix: ") as error:
        run.buffer().load(run.root)
    assert "\n" not in str(error.value)
    with pytest.raises(ReplayError, match=rf"{path.name} is (missing|damaged)"):
        close(buffer, [0.0])
    # storing the same trajectory again puts it right
    assert run.folder.rows.put(trajectory(1.0, "a")) == buffer.stored[0].sha256
    assert replayed(close(buffer, [0.0])) == [0]


def test_a_log_prob_that_is_no_number_is_not_stored(run):
    with pytest.raises(ReplayError, match="episode x has a log-prob that is no number"):
        run.folder.rows.put(trajectory(1.0, "x", logprobs=[0.0, float("nan"), 0.0, 0.0, 0.0]))
    assert run.rows() == set()


def test_off_reads_and_writes_no_row(run):
    stored = run.buffer("a")
    stored.save(run.root)
    run.folder.rows.path(stored.stored[0].sha256).unlink()
    off = run.buffer(rule="off")
    off.load(run.root)
    assert off.stored == ()
    close(off, [1.0, 1.0])
    close(off, [0.0, 0.0])
    assert run.rows() == set()
    assert set(off.metrics(0).values()) == {0}
