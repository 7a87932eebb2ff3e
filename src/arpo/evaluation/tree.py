"""One episode as a folder in OSWorld's layout (`lib_run_single.py` there), so that its tools read ours.

    traj.jsonl                   one line an action: step_num, action_timestamp, action, response, reward, done, info,
                                 screenshot_file
    step_0_<timestamp>.png       the screen before the first step
    step_<n>_<timestamp>.png     the screen after step n
    result.txt                   the score; there is none for an episode that its environment broke

Invariant: the folder is there whole or not at all. Its pictures take no space: they are links into the screenshot store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from arpo.protocol.actions import TERMINAL
from arpo.trajectory import Trajectory, Turn
from arpo.trajectory.store import ScreenshotStore


def write_episode(folder: Path, trajectory: Trajectory, screenshots: ScreenshotStore) -> None:
    """Write an episode's folder in place of one that may be there."""
    new = folder.with_name(f".{folder.name}.new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(parents=True)
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(trajectory)]
    (new / "traj.jsonl").write_text("".join(lines), encoding="utf-8")
    for name, sha256 in _pictures(trajectory):
        _link(screenshots.path(sha256), new / name)
    if trajectory.valid:
        (new / "result.txt").write_text(f"{trajectory.score}\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def _lines(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    for number, turn in enumerate(trajectory.turns, start=1):
        # a turn that is no action has a line as well
        for index in range(max(1, len(turn.actions))):
            action = turn.actions[index] if turn.actions else None
            yield {
                "step_num": number,
                "action_timestamp": _timestamp(turn),
                "action": action.model_dump(mode="json") if action else None,
                "response": turn.text,
                "reward": 0.0,  # OSWorld's environment gives none before the evaluation, which is in result.txt
                "done": isinstance(action, TERMINAL),
                "info": {"format_error": turn.format_error} if turn.format_error else {},
                "screenshot_file": _after(trajectory, number)[0],
            }
    if trajectory.problem is not None:
        # as OSWorld's runner notes what broke an episode
        problem = trajectory.problem
        yield {"Error": problem.detail, "code": problem.code.value, "fault": problem.fault.value}


def _pictures(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """(file name, sha256) of every picture."""
    turns = trajectory.turns
    if turns:
        yield f"step_0_{_timestamp(turns[0])}.png", turns[0].observation
    for number in range(1, len(turns) + 1):
        name, sha256 = _after(trajectory, number)
        if name is not None and sha256 is not None:
            yield name, sha256


def _after(trajectory: Trajectory, number: int) -> tuple[str | None, str | None]:
    """Name and sha256 of the screen after a step; None for the last one of a broken episode, of which there is none."""
    turns = trajectory.turns
    sha256 = turns[number].observation if number < len(turns) else trajectory.final_observation
    return (f"step_{number}_{_timestamp(turns[number - 1])}.png" if sha256 else None), sha256


def _timestamp(turn: Turn) -> str:
    return datetime.fromtimestamp(turn.started_at or 0.0).astimezone().strftime("%Y%m%d@%H%M%S")


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where the file system has none, or no more for this picture."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
