"""What an evaluation leaves on disk is all that its result depends on, and OSWorld's tools can read it."""

from __future__ import annotations

import json

import pytest
from evaluation_kit import episode, record
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.evaluation.record import OtherEvaluationError, recorded_step, remove_record
from arpo.protocol.problems import ArpoError


def scores(found) -> list[list[float]]:
    return [task.scores for task in found.result().tasks]


def test_what_was_recorded_is_there_again_without_tokens(tmp_path) -> None:
    first = record(tmp_path, repeats=2)
    for number, name, place, score in ((1, "b", 1, 0.25), (0, "a", 0, 1.0), (0, "a", 1, None)):
        first.append(episode(first.screenshots, number, name, place=place, score=score))
    again = record(tmp_path, repeats=2)
    assert again.episodes == first.episodes
    assert scores(again) == [[1.0], [0.25]]
    result = again.result()
    assert result == first.result()
    assert (result.lost, result.faults, result.policy_version) == (2, {"evaluator_failed": 1}, 7)
    assert not again.complete
    assert all(not t.token_ids and not t.trainable for t in again.episodes)
    assert recorded_step(tmp_path / "mine") == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400))
def test_a_line_that_a_kill_has_cut_short_is_an_episode_to_run_again(tmp_path_factory, cut) -> None:
    folder = tmp_path_factory.mktemp("cut")
    first = record(folder)
    for number, name in enumerate("ab"):
        first.append(episode(first.screenshots, number, name))
    log = folder / "mine" / "episodes.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    again = record(folder)
    assert scores(again) == [[1.0], []]
    again.append(episode(first.screenshots, 1, "b", score=0.5))
    assert scores(record(folder)) == [[1.0], [0.5]]


def test_a_damaged_line_in_the_middle_is_named(tmp_path) -> None:
    first = record(tmp_path)
    first.append(episode(first.screenshots, 0, "a"))
    log = tmp_path / "mine" / "episodes.jsonl"
    log.write_bytes(b"nonsense\n" + log.read_bytes())
    with pytest.raises(ArpoError, match=r"episodes\.jsonl:1 is damaged; fix: remove that line"):
        record(tmp_path)


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        ((), {"policy": "q"}, "policy: p → q"),
        ((), {"engine__eval_temperature": 0}, r"engine\.eval_temperature: 0\.6 → 0\.0"),
        ((), {"agent__prompt": "short", "run__seed": 1}, r"run\.seed: 0 → 1 \(and 1 more\)"),
        (("a", "c"), {}, "tasks: 2 → 2, 2 of other names or content"),
    ],
)
def test_an_evaluation_of_something_else_is_refused_with_the_fix(tmp_path, names, changes, said) -> None:
    record(tmp_path)
    with pytest.raises(OtherEvaluationError, match=rf"{said}; fix: --label OTHER, or --fresh"):
        record(tmp_path, *names, **changes)
    remove_record(tmp_path / "mine")
    assert record(tmp_path, *names, **changes).episodes == []


def test_repeats_may_be_added_and_not_taken_away(tmp_path) -> None:
    once = record(tmp_path)
    for number, name in enumerate("ab"):
        once.append(episode(once.screenshots, number, name))
    assert once.complete
    more = record(tmp_path, repeats=3)
    assert not more.complete
    assert scores(more) == [[1.0], [1.0]]
    assert (tmp_path / "mine" / "test" / "a" / "0" / "result.txt").exists()
    assert not (tmp_path / "mine" / "test" / "a" / "result.txt").exists()
    with pytest.raises(OtherEvaluationError, match=r"fix: trainer\.eval_repeats=3 or more, or --label OTHER"):
        record(tmp_path)


def test_an_episodes_folder_is_osworlds_and_its_pictures_take_no_space(tmp_path) -> None:
    mine = record(tmp_path)
    mine.append(episode(mine.screenshots, 0, "a", score=0.5))
    folder = tmp_path / "mine" / "test" / "a"
    lines = [json.loads(line) for line in (folder / "traj.jsonl").read_text().splitlines()]
    # the keys that OSWorld's lib_run_single.py writes
    keys = {"step_num", "action_timestamp", "action", "response", "reward", "done", "info", "screenshot_file"}
    assert [set(line) for line in lines] == [keys, keys]
    assert [(line["step_num"], line["done"], line["action"]["kind"]) for line in lines] == [
        (1, False, "click"),
        (2, True, "finished"),
    ]
    assert float((folder / "result.txt").read_text()) == 0.5
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert len(pictures) == 3
    assert {line["screenshot_file"] for line in lines} == set(pictures[1:])
    for number, name in enumerate(pictures):
        assert name.startswith(f"step_{number}_20")
        assert (folder / name).read_bytes() == f"picture {number}".encode()
        assert (folder / name).stat().st_nlink == 2


def test_an_episode_that_its_environment_broke_has_its_reason_and_no_result(tmp_path) -> None:
    mine = record(tmp_path)
    mine.append(episode(mine.screenshots, 0, "a", score=None))
    folder = tmp_path / "mine" / "test" / "a"
    lines = [json.loads(line) for line in (folder / "traj.jsonl").read_text().splitlines()]
    assert lines[-1] == {"Error": "broken", "code": "evaluator_failed", "fault": "environment"}
    assert not (folder / "result.txt").exists()
    mine.append(episode(mine.screenshots, 0, "a", score=0.0))
    assert (folder / "result.txt").read_text() == "0.0\n"
    assert "Error" not in (folder / "traj.jsonl").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a"]
