"""The run directory: everything a run leaves behind, and nothing anywhere else.

    attempts.jsonl  config.yaml  config_changes.jsonl  version.json  version_changes.jsonl  metrics.jsonl  batches.jsonl
    trajectories/  screenshots/  replay/  checkpoints/  faults.jsonl  evaluations/  summary.json, and a folder for each
    tracker

Invariant: one process at a time owns a run directory (an advisory lock that dies with the process).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import time
from collections.abc import Set
from pathlib import Path
from typing import IO, Any, Self

import yaml

from arpo.config.load import dump_config
from arpo.config.model import Config
from arpo.evaluation.record import recorded_step, remove_record
from arpo.evaluation.result import EvaluationResult
from arpo.files import write_atomic
from arpo.protocol.problems import ConfigError
from arpo.replay import ReplayFolder
from arpo.trainer import checkpoints
from arpo.trainer.metrics import evaluation_metrics
from arpo.trainer.trackers.base import flat
from arpo.trainer.version import CodeVersion
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore, TrajectoryLog

TRAINING_LABEL = re.compile(r"before|after|step-.*")
"""Labels of the evaluations that training makes."""

# A process id is not enough: containers that follow each other often have the same.
_PROCESS = secrets.token_hex(8)


class RunDirectory:
    """Opens (and locks) `<run.dir>/<run.name>`.

    Raises ConfigError when another process has it, or when it cannot be made.
    """

    def __init__(self, config: Config) -> None:
        self.root = config.run.dir / config.run.name
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / ".lock").open("a+")
        except OSError as error:
            raise ConfigError(
                f"run directory {self.root} cannot be written: {error.strerror}; fix: set run.dir to a writable folder"
            ) from error
        self._acquire()
        self.attempt = 0
        self.screenshots = ScreenshotStore(self.root / "screenshots")
        self.trajectories = TrajectoryLog(self.root / "trajectories")
        self.replay = ReplayFolder(self.root / "replay")
        self.checkpoints = checkpoints.folder(self.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def begin_attempt(self, step: int) -> int:
        """Count the processes that have worked on the run, this one included: `attempt`, and a line of `attempts.jsonl`.

        step: from which this one goes on. Lost learner ranks begin again in the same process, which is no new attempt.
        """
        path = self.root / "attempts.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        known = [json.loads(line) for line in lines if line.endswith("\n")]
        self.attempt = len(known)
        if not known or known[-1]["process"] != _PROCESS:
            self.attempt += 1
            known.append({"attempt": self.attempt, "step": step, "time": time.time(), "process": _PROCESS})
            write_atomic(path, "".join(json.dumps(one) + "\n" for one in known).encode())
        return self.attempt

    def keep_config(self, config: Config, step: int = 0) -> list[str]:
        """Write `config.yaml`; returns `key: old → new` for every setting in which it differs from the one that was there.

        step: from which the run goes on; the differences are kept with it in `config_changes.jsonl`.
        Raises ConfigError when the one that was there cannot be read.
        """
        return self._keep("config.yaml", dump_config(config), "configuration", step)

    def keep_version(self, version: CodeVersion, step: int = 0) -> list[str]:
        """Write `version.json`; as `keep_config`, with `version_changes.jsonl`."""
        text = version.model_dump_json(indent=2) + "\n"
        return self._keep("version.json", text, "code version", step)

    def _keep(self, name: str, text: str, what: str, step: int) -> list[str]:
        path = self.root / name
        drift = []
        if path.exists():
            try:  # JSON is YAML
                old, new = (dict(flat(yaml.safe_load(stored) or {})) for stored in (path.read_text(), text))
            except (ValueError, AttributeError, yaml.YAMLError) as error:
                raise ConfigError(f"{path} is no {what} any more; fix: remove it") from error
            drift = [
                f"{key}: {old.get(key)} → {new.get(key)}"
                for key in dict.fromkeys([*old, *new])
                if old.get(key) != new.get(key)
            ]
        if drift:
            changes = self._changes_of(name)
            lines = changes.read_text(encoding="utf-8") if changes.exists() else ""
            for change in drift:
                lines += json.dumps({"step": step, "change": change}, ensure_ascii=False) + "\n"
            write_atomic(changes, lines.encode())
        write_atomic(path, text.encode())
        return drift

    def config_changes(self) -> list[str]:
        """Every change of the configuration in this run's life, as `after step N: key: old → new`."""
        return self._changes("config.yaml")

    def version_changes(self) -> list[str]:
        """Every change of the code version in this run's life, in the same words."""
        return self._changes("version.json")

    def _changes(self, name: str) -> list[str]:
        path = self._changes_of(name)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [f"after step {row['step']}: {row['change']}" for row in map(json.loads, lines)]

    def _changes_of(self, name: str) -> Path:
        return self.root / f"{Path(name).stem}_changes.jsonl"

    def standing(self, step: int) -> dict[str, float]:
        """Metrics and evaluation of a step from which the run goes on."""
        path = self.root / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        row: dict[str, float] = next((json.loads(line) for line in lines if _step(line) == step), {})
        evaluation = self.evaluation(f"step-{step:06d}" if step else "before")
        if evaluation.exists():
            kept = json.loads(evaluation.read_text(encoding="utf-8"))
            result = {name: kept[name] for name in EvaluationResult.model_fields}
            row |= evaluation_metrics(EvaluationResult.model_validate(result))
        return row

    def forget_after(self, step: int, ended: Set[str] = frozenset()) -> None:
        """Drop what a run that goes on from a step will make again; trajectories and faults are kept for people.

        ended: ids of episodes that need not be run again.
        """
        for name in ("metrics.jsonl", "batches.jsonl"):
            path = self.root / name
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
                write_atomic(path, "".join(line + "\n" for line in kept).encode())
        self.trajectories.abandon_after(step, ended)
        for evaluation in self.root.glob("evaluations/step-*.json"):
            if int(evaluation.stem.removeprefix("step-")) > step:
                evaluation.unlink()
        for folder in self.root.glob("evaluations/*/"):
            # one that training began after that step may be of weights that the resumed run will not have
            recorded = recorded_step(folder) if TRAINING_LABEL.fullmatch(folder.name) else None
            if recorded is not None and recorded > step:
                remove_record(folder)
        for name in ("evaluations/after.json", "summary.json"):
            (self.root / name).unlink(missing_ok=True)

    def evaluation(self, label: str) -> Path:
        """Where an evaluation's result is or would be."""
        return self.root / "evaluations" / f"{label}.json"

    def evaluation_record(self, label: str) -> Path:
        """The folder of an evaluation's episodes."""
        return self.root / "evaluations" / label

    def metrics(self, record: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        self._append("metrics.jsonl", record)

    def batch(self, record: dict[str, Any]) -> None:
        """Append one line to `batches.jsonl`: which episodes a step learned from."""
        self._append("batches.jsonl", record)

    def fault(self, step: int, trajectory: Trajectory) -> None:
        """Append an invalid episode to `faults.jsonl`."""
        if trajectory.problem is not None:
            self._append(
                "faults.jsonl",
                {
                    "time": time.time(),
                    "step": step,
                    "episode_id": trajectory.episode_id,
                    "task_id": trajectory.task_id,
                    "trace_id": trajectory.trace_id,
                    **trajectory.problem.model_dump(mode="json", exclude={"trace_id"}, exclude_none=True),
                },
            )

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON document, atomically."""
        write_atomic(self.root / name, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _acquire(self) -> None:
        lock: IO[str] = self._lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise ConfigError(
                f"run directory {self.root} is in use by process {owner}; "
                "fix: wait for it or choose another run.name"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()


def _step(line: str) -> float:
    """The step of a line of metrics; none is kept that a kill has cut short."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
