"""The episodes of one evaluation on disk, written as they end.

    <run>/evaluations/<label>/  evaluation.json                  what it is of, and the repeats
                                episodes.jsonl                   one line an episode, invalid ones too
                                <domain>/<task id>/…             each task's episode in OSWorld's layout (`tree`),
                                <domain>/<task id>/<repeat>/…    or one folder a repeat when there are several

Invariant: the result is a function of these files alone. A valid episode that is recorded is never run again, and its
folder was there before its line.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from arpo.evaluation.identity import Identity
from arpo.evaluation.result import EvaluationResult, TaskResult
from arpo.evaluation.tree import write_episode
from arpo.files import write_atomic
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

_DOCUMENT = "evaluation.json"
_EPISODES = "episodes.jsonl"
_FIX = "fix: --label OTHER, or --fresh to make it anew"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    repeats: int
    identity: Identity


@dataclass
class EvaluationRecord:
    """One evaluation's episodes; `open_record` makes it. episodes: that ended, in this process or an earlier one."""

    folder: Path
    identity: Identity
    repeats: int
    screenshots: ScreenshotStore
    episodes: list[Trajectory] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What the ids of its episodes begin with."""
        return f"eval-{self.identity.label}"

    @property
    def complete(self) -> bool:
        """Every episode has a valid result."""
        return sum(t.valid for t in self.episodes) >= self.repeats * len(self.identity.tasks)

    def append(self, trajectory: Trajectory) -> None:
        """Keep an episode that ended."""
        trajectory = trajectory.without_row()
        write_episode(self._folder_of(trajectory), trajectory, self.screenshots)
        with (self.folder / _EPISODES).open("a", encoding="utf-8") as file:
            file.write(trajectory.model_dump_json() + "\n")
        self.episodes.append(trajectory)

    def valid(self) -> list[list[Trajectory]]:
        """The valid episodes of each task, in the order of the tasks and their repeats."""
        groups: dict[int, list[Trajectory]] = defaultdict(list)
        for trajectory in self.episodes:
            if trajectory.valid:
                groups[_number(trajectory)].append(trajectory)
        return [sorted(groups[number], key=_place) for number in range(len(self.identity.tasks))]

    def result(self) -> EvaluationResult:
        """Of what is recorded; what is not, is lost."""
        tasks = [
            TaskResult(
                task_id=task.task_id,
                domain=task.domain,
                scores=[t.score for t in valid if t.score is not None],
                lost=self.repeats - len(valid),
            )
            for task, valid in zip(self.identity.tasks, self.valid(), strict=True)
        ]
        faults = Counter(t.problem.code.value for t in self.episodes if t.problem is not None)
        return EvaluationResult(
            policy_version=self.identity.policy_version, tasks=tasks, faults=dict(sorted(faults.items()))
        )

    def write_tree(self) -> None:
        """Write every episode's folder anew."""
        for task in self.identity.tasks:
            shutil.rmtree(self._folder(task.domain, task.task_id), ignore_errors=True)
        for trajectory in self.episodes:
            write_episode(self._folder_of(trajectory), trajectory, self.screenshots)

    def _folder(self, domain: str, task_id: str) -> Path:
        return self.folder / domain / task_id

    def _folder_of(self, trajectory: Trajectory) -> Path:
        folder = self._folder(trajectory.domain, trajectory.task_id)
        return folder / str(_place(trajectory)) if self.repeats > 1 else folder


class OtherEvaluationError(ConfigError):
    """The label is taken by an evaluation of something else."""


def open_record(
    folder: Path, identity: Identity, repeats: int, screenshots: ScreenshotStore
) -> EvaluationRecord:
    """The record in a folder, or a new one. More repeats than there were are added to those that are there.

    Raises OtherEvaluationError when it is of something else or has more repeats, ArpoError when it is damaged.
    """
    document = folder / _DOCUMENT
    record = EvaluationRecord(folder, identity, repeats, screenshots)
    had = repeats
    if document.exists():
        try:
            found = _Document.model_validate_json(document.read_bytes())
        except ValidationError as error:
            raise OtherEvaluationError(f"{document} is of another version; {_FIX}") from error
        differences = found.identity.differences(identity)
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise OtherEvaluationError(f"{folder} is of something else: {differences[0]}{more}; {_FIX}")
        if repeats < found.repeats:
            raise OtherEvaluationError(
                f"{folder} has {found.repeats} episodes a task; "
                f"fix: trainer.eval_repeats={found.repeats} or more, or --label OTHER"
            )
        had = found.repeats
        record.episodes = _read(folder / _EPISODES)
    if not document.exists() or repeats != had:
        if (had > 1) != (repeats > 1):
            record.write_tree()
        content = _Document(repeats=repeats, identity=identity).model_dump_json(indent=2)
        write_atomic(document, content.encode() + b"\n")
    return record


def remove_record(folder: Path) -> None:
    """Forget an evaluation, whatever is left of it."""
    # first what makes it a record, so that half of one is never taken for a whole
    (folder / _DOCUMENT).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def recorded_step(folder: Path) -> int | None:
    """The training step that a record is of; None when the folder holds no record of this version."""
    try:
        return _Document.model_validate_json((folder / _DOCUMENT).read_bytes()).identity.step
    except (OSError, ValidationError):
        return None


def _read(path: Path) -> list[Trajectory]:
    """The recorded episodes; a last line that a kill has cut short is removed."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_atomic(path, whole)
    return [_trajectory(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]


def _trajectory(path: Path, number: int, line: bytes) -> Trajectory:
    try:
        return Trajectory.model_validate_json(line)
    except ValidationError as error:
        raise ArpoError(
            f"{path}:{number} is damaged; fix: remove that line; its episode is run again"
        ) from error


def _number(trajectory: Trajectory) -> int:
    """The task's place among the tasks, which its group's id names."""
    return int(trajectory.group_id.split("/")[1].partition("-")[0])


def _place(trajectory: Trajectory) -> int:
    return int(trajectory.episode_id.removeprefix(f"{trajectory.group_id}/").partition("-")[0])
