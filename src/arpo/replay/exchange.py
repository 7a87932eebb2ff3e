"""Exporting from a run and importing into one.

Invariant: an import checks everything before it changes anything, and doing it twice is doing it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.replay.dataset import Dataset, Manifest, pictures, write_dataset
from arpo.replay.errors import ReplayError
from arpo.replay.folder import InboxEntry
from arpo.replay.index import Stored
from arpo.replay.listing import StoredRun


@dataclass(frozen=True)
class Imported:
    """How many trajectories an import added, and how many were there already."""

    added: int
    present: int


def export_run(
    run: StoredRun, folder: Path, *, task: str | None = None, demonstrations: bool = False
) -> Manifest:
    """Write what a run has stored, or the demonstrations it recorded, as a data set.

    task: only of the task with this id. Raises ConfigError when there is nothing or the folder is not empty,
    ReplayError for a damaged row.
    """
    with run.folder.lock(shared=True):
        tokenizer = run.tokenizer()
        items = _demonstrations(run, task) if demonstrations else _stored(run, task)
        if tokenizer is None:
            raise ConfigError(f"{run.root} has stored nothing yet; fix: train first, or import something")
        return write_dataset(folder, items, run.screenshots, tokenizer)


def import_run(root: Path, dataset: Dataset) -> Imported:
    """Put a data set's trajectories and screenshots into a run directory, new or not; training takes them in next time.

    Raises ConfigError when anything is damaged, no success by the run's own measure, or of another tokenizer,
    ReplayError when the run cannot be written.
    """
    run = StoredRun(root)
    above, tokenizer = run.success_above(), run.tokenizer()
    if tokenizer not in (None, dataset.manifest.tokenizer):
        raise ConfigError(
            f"{dataset.root} has token ids of another tokenizer than {root}; "
            "fix: import it into a run of the model.path it was made with"
        )
    for _ in dataset.items(above):
        pass  # nothing is written before all of it has been checked
    try:
        return _copy(run, dataset, above)
    except OSError as error:
        raise ReplayError(
            f"{root} cannot be written: {error.strerror}; fix: that, then import again"
        ) from error


def _copy(run: StoredRun, dataset: Dataset, success_above: float) -> Imported:
    added = present = 0
    run.folder.root.mkdir(parents=True, exist_ok=True)
    with run.folder.lock():
        for item in dataset.items(success_above):
            for sha256 in sorted(pictures(item.trajectory)):
                run.screenshots.put(dataset.picture(sha256))
            run.folder.rows.put_document(item.document)
            entry = InboxEntry(tokenizer=dataset.manifest.tokenizer, stored=item.stored)
            is_new = run.folder.deliver(entry)
            added, present = added + is_new, present + (not is_new)
    return Imported(added, present)


def _stored(run: StoredRun, task: str | None) -> Iterator[tuple[Stored, bytes]]:
    for one in run.listed(task):
        yield one.stored, run.folder.rows.document(one.stored.sha256)


def _demonstrations(run: StoredRun, task: str | None) -> Iterator[tuple[Stored, bytes]]:
    for trajectory in run.demonstrations():
        if task is None or trajectory.task_id == task:
            document = trajectory.model_dump_json().encode()
            yield Stored.of_rollout(trajectory, hashlib.sha256(document).hexdigest(), step=0), document
