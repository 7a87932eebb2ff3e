"""The log of trajectories: what a run that goes on keeps, finds and puts aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arpo.protocol.problems import ArpoError
from arpo.trajectory import Trajectory, store
from arpo.trajectory.store import TrajectoryLog


def ended(name: str, began: float = 0.0) -> Trajectory:
    """An episode of no turns."""
    return Trajectory(
        episode_id=name, task_id="t", domain="d", instruction="i", group_id="g", token_ids=[], loss_mask=[],
        logprobs=[], images=[], turns=[], score=0.0, format=0.0, started_at=began, duration_s=1.0,
    )  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> TrajectoryLog:
    """Step 1 with a and b, step 2 with c, d and a line that is cut short."""
    made = TrajectoryLog(tmp_path)
    for step, name in ((1, "a"), (1, "b"), (2, "c"), (2, "d")):
        made.append(step, ended(name))
    with (tmp_path / "step-000002.jsonl").open("ab") as file:
        file.write(ended("e").model_dump_json().encode()[:40])
    return made


def names(log: TrajectoryLog, step: int) -> list[str]:
    return [t.episode_id for t in log.read(step)]


def aside(log: TrajectoryLog, step: int, number: int) -> list[bytes]:
    return (log.root / f"step-{step:06d}.abandoned-{number}.jsonl").read_bytes().splitlines()


def test_what_is_kept_stays_in_its_order_and_a_cut_line_goes_aside(log: TrajectoryLog) -> None:
    log.abandon_after(1, {"d", "of nobody"})
    assert (names(log, 1), names(log, 2)) == (["a", "b"], ["d"])
    gone = aside(log, 2, 1)
    assert json.loads(gone[0])["episode_id"] == "c"
    assert len(gone) == 2
    log.append(2, ended("c", 5.0))
    assert names(log, 2) == ["d", "c"]


def test_nothing_is_moved_when_all_is_kept(log: TrajectoryLog) -> None:
    log.abandon_after(1, {"c", "d"})
    log.abandon_after(1, {"c", "d"})
    assert names(log, 2) == ["c", "d"]
    assert not list(log.root.glob("*.abandoned-2.jsonl"))


def test_a_line_that_lacks_its_end_alone_does_not_swallow_the_next_one(log: TrajectoryLog) -> None:
    path = log.root / "step-000002.jsonl"
    path.write_text(ended("c").model_dump_json())
    assert log.find({"c"}) == {}
    log.abandon_after(1, {"c"})
    log.append(2, ended("c", 5.0))
    assert [t.started_at for t in log.read(2)] == [5.0]


def test_a_kill_between_copy_and_removal_loses_nothing(log: TrajectoryLog, monkeypatch) -> None:
    class Killed(BaseException): ...

    write = store.write_atomic

    def killed(path: Path, data: bytes) -> None:
        if "abandoned" not in path.name:
            raise Killed
        write(path, data)

    monkeypatch.setattr(store, "write_atomic", killed)
    with pytest.raises(Killed):
        log.abandon_after(1, {"c"})
    monkeypatch.undo()
    log.abandon_after(1, {"c"})
    assert names(log, 2) == ["c"]
    assert aside(log, 2, 1) == aside(log, 2, 2)


def test_an_older_copy_is_never_overwritten(log: TrajectoryLog) -> None:
    for number in (1, 2):
        log.abandon_after(1)
        log.append(2, ended(f"again-{number}"))
    (log.root / "step-000002.abandoned-1.jsonl").unlink()  # a person needed the space
    second = aside(log, 2, 2)
    log.abandon_after(1)
    assert aside(log, 2, 2) == second
    assert json.loads(aside(log, 2, 3)[0])["episode_id"] == "again-2"


def test_the_latest_of_an_id_is_found_among_cut_lines_and_none_that_was_abandoned(log: TrajectoryLog) -> None:
    log.append(3, ended("a", 5.0))
    log.append(3, ended("a", 6.0))
    found = log.find({"a", "b", "c", "e"})
    assert {name: t.started_at for name, t in found.items()} == {"a": 6.0, "b": 0.0, "c": 0.0}
    log.abandon_after(1)
    assert log.find({"a", "c"}).keys() == {"a"}


def test_a_damaged_line_is_named_if_it_is_asked_for(log: TrajectoryLog) -> None:
    path = log.root / "step-000001.jsonl"
    path.write_text(path.read_text() + '{"episode_id": "z"}\n')
    assert log.find({"a"}).keys() == {"a"}
    with pytest.raises(ArpoError, match=r"step-000001\.jsonl:3 is no trajectory .*fix: remove that line"):
        log.find({"z"})
