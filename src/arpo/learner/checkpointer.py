"""Writes the checkpoints of a run behind its back.

Invariant: `save` returns once everything is copied; what is written afterwards does not see later changes. A checkpoint
appears whole or not at all, the older ones stay until it has, and a save that failed is an error of the next call.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from arpo.checkpoints.folders import best, complete
from arpo.checkpoints.manifest import seal
from arpo.files import sync
from arpo.learner.checkpoint import (
    POLICY,
    REPLACED,
    REPLAY,
    STATE,
    TENSORS,
    UNREADABLE,
    CheckpointError,
    reason,
    tidy,
)


class Learner(Protocol):
    """The tensors of a checkpoint."""

    def begin_save(self, folder: Path) -> Future[None]:
        """Copy the state before returning, write it into the folder afterwards."""


class Replay(Protocol):
    """The replay buffer."""

    def save(self, folder: Path) -> None:
        """Write into an empty folder."""


class Policy(Protocol):
    """What the tensors are the weights of."""

    def save_blueprint(self, folder: Path) -> None:
        """Write a model folder without weights into an empty folder."""


class Checkpointer:
    """The one writer of a folder of checkpoints. Any thread may call it; whoever ends calls `finish`.

    keep: so many of the newest checkpoints are kept. success: evaluated success by step, asked for whenever a checkpoint
    was published; the best of those that are still there is kept besides. None: the newest only.
    """

    def __init__(
        self, root: Path, *, keep: int, success: Callable[[], Mapping[int, float]] | None = None
    ) -> None:
        self.root = root
        self._keep = keep
        self._success = success
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._lock = threading.RLock()
        self._saving: tuple[int, Future[None]] | None = None

    def save(
        self, step: int, captured: Mapping[str, Any], *, learner: Learner, replay: Replay, policy: Policy
    ) -> None:
        """Begin to save `<root>/step-<step>`, after the save before has ended.

        captured: from `checkpoint.capture`, of the moment that learner and buffer are in now. A checkpoint of the same step
        is replaced. Raises CheckpointError when this cannot begin, or when the save before failed.
        """
        with self._lock:
            self.finish()
            self._saving = step, self._begin(step, captured, learner, replay, policy)

    def finish(self) -> None:
        """Wait for the save that is going on, if one is. Raises CheckpointError when it failed."""
        with self._lock:
            if self._saving is None:
                return
            step, saving = self._saving
            self._saving = None
            try:
                saving.result()
            except UNREADABLE as error:
                raise self._unwritten(step, error) from error

    def _begin(
        self, step: int, captured: Mapping[str, Any], learner: Learner, replay: Replay, policy: Policy
    ) -> Future[None]:
        scratch = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tidy(self.root)
            scratch = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{_name(step)}."))
            scratch.chmod(0o755)  # mkdtemp makes it private
            for folder in (TENSORS, REPLAY, POLICY):
                (scratch / folder).mkdir()
            replay.save(scratch / REPLAY)
            policy.save_blueprint(scratch / POLICY)
            (scratch / STATE).write_text(json.dumps(captured), encoding="utf-8")
            tensors = learner.begin_save(scratch / TENSORS)
        except UNREADABLE as error:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            raise self._unwritten(step, error) from error
        return self._thread.submit(self._publish, step, scratch, tensors)

    def _publish(self, step: int, scratch: Path, tensors: Future[None]) -> None:
        try:
            tensors.result()
            seal(scratch)
            final = self.root / _name(step)
            # a rename cannot replace a folder that holds files, so one of the same step goes aside first
            aside = [_hide(final, REPLACED)] if final.exists() else []
            scratch.rename(final)
            sync(self.root)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)  # a full disk must not stay full
            raise
        there = complete(self.root)
        kept = there[-self._keep :]
        if self._success is not None and (winner := best(there, self._success())) is not None:
            kept.append(winner)
        aside += [_hide(old.path, "pruned") for old in there if old not in kept]
        for hidden in aside:
            shutil.rmtree(hidden)

    def _unwritten(self, step: int, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.root / _name(step)} could not be written: {reason(error)}; older ones stand; "
            "fix: see to that (is there room on the disk?), then start the run again"
        )


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _hide(folder: Path, why: str) -> Path:
    """Take a checkpoint away under its own name before it is removed: it must never stand there half removed."""
    hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    folder.rename(hidden / why)
    return hidden
