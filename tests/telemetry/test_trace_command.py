"""`arpo trace` as a person runs it, on a run directory as it lies there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rollout_kit import CLICK, FINISH, Says
from scripted_desktop import Script, lost
from test_episode_trace import acts, played

from arpo.trajectory import Trajectory
from arpo.trajectory.store import TrajectoryLog

TYPES = "Thought: so.\nAction: type(content='a password')"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes: one whole, one with a fault, and one whose line a kill has cut short."""
    root = tmp_path_factory.mktemp("run")
    log = TrajectoryLog(root / "trajectories")
    whole = played(root, Says(TYPES, CLICK, FINISH))
    broken = played(root, Says(CLICK), Script(execute=lambda desktop: lost()))
    renamed = {"episode_id": "h/0", "started_at": whole.started_at + 60}
    log.append(1, whole.model_copy(update={"trace_id": "ab" * 16, "span_id": "cd" * 8}))
    log.append(2, broken.model_copy(update=renamed))
    with (root / "trajectories" / "step-000002.jsonl").open("a") as file:
        file.write(whole.model_dump_json()[:500])
    evaluation = root / "evaluations" / "after"
    evaluation.mkdir(parents=True)
    evaluated = whole.without_row().model_copy(update={"episode_id": "eval-after/0"})
    (evaluation / "episodes.jsonl").write_text(evaluated.model_dump_json() + "\n")
    return root


def test_an_episode_is_drawn_line_by_line(arpo, run: Path) -> None:
    shown = arpo("trace", str(run), "g/0", COLUMNS="110")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].strip() == "g/0: test/t"
    assert "3 turns, score 1, policy version 7, trace " + "ab" * 16 in lines[1]
    names = [re.match(r"( *)([a-z]+) ", line) for line in lines[3:-1]]
    drawn = [(len(match[1]) // 2, match[2]) for match in names if match]
    step = [(1, "step"), (2, "act"), (2, "settle"), (2, "encode")]
    assert drawn == [
        (0, "episode"), (1, "reset"), (2, "lease"), (2, "encode"), (1, "generate"), *step, (1, "generate"), *step,
        (1, "generate"), *step, (1, "evaluate"),
    ]  # fmt: skip
    assert "type 10 characters" in shown.stdout
    assert "password" not in shown.stdout
    assert "score 1" in lines[-2]
    assert re.match(r"reset [\d.]+ s \(\d+%\), generate .*, other ", lines[-1])
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_begins_where_its_operation_began(arpo, run: Path, columns: int) -> None:
    lines = arpo("trace", str(run), "g/0", COLUMNS=str(columns)).stdout.splitlines()
    (trajectory,) = TrajectoryLog(run / "trajectories").read(1)
    axis = lines[2].index("0 ", lines[2].index("took s"))
    width = len(lines[2].rstrip()) - axis
    starts = [re.search(r"[█▏▎▍▌▋▊▉]", line).start() - axis for line in lines[3:-1]]
    assert starts[0] == 0
    assert len(lines[3].rstrip()) - axis == width, "the episode's bar is all of the axis"
    operations = [line for line in lines[4:-1] if re.match("  [a-z]", line)]
    for line, operation in zip(operations, trajectory.operations, strict=True):
        began = re.search(r"[█▏▎▍▌▋▊▉]", line).start() - axis
        assert began == pytest.approx(operation.start_s / trajectory.duration_s * width, abs=1.0)
    assert max(map(len, lines[:-1])) <= columns


def test_the_latest_is_the_one_that_began_last_and_its_fault_is_shown(arpo, run: Path) -> None:
    shown = arpo("trace", str(run))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("h/0:")
    assert "score none" in shown.stdout
    assert "trace not exported" in shown.stdout
    assert shown.stdout.count("desktop_lost") == 2  # of the step, and so of the episode


def test_evaluations_episodes_are_found_by_the_beginning_of_an_id(arpo, run: Path) -> None:
    assert arpo("trace", str(run), "eval-af").stdout.startswith("eval-after/0:")


@pytest.mark.parametrize("episode", ["nobody", "g/00"])
def test_an_unknown_episode_is_one_line(arpo, run: Path, episode: str) -> None:
    shown = arpo("trace", str(run), episode)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"error: {run} has no record of episode {episode}; fix:")


def test_a_record_of_an_older_version_says_that_there_is_no_more(arpo, tmp_path: Path) -> None:
    record = json.loads(played(tmp_path, Says(FINISH), Script(execute=acts)).model_dump_json())
    for name in ("operations", "trace_id", "span_id"):
        del record[name]
    Trajectory.model_validate(record)
    folder = tmp_path / "trajectories"
    folder.mkdir()
    (folder / "step-000001.jsonl").write_text(json.dumps(record) + "\n")
    shown = arpo("trace", str(tmp_path), "g")
    assert shown.returncode == 0, shown.stderr
    assert "kept no operations" in shown.stdout
