"""An exported folder of successful trajectories: to seed a run's buffer with, or to imitate.

    manifest.json        format, tokenizer fingerprint, the sha256 and the gist of every trajectory, in their order
    trajectories.jsonl   one trajectory a line
    screenshots/         every picture they need, named by its sha256

Invariant: a folder is written whole or not at all, and nothing is read from one whose hashes were not checked.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arpo.files import sync
from arpo.protocol.problems import ConfigError
from arpo.replay.index import Stored
from arpo.trajectory import Trajectory
from arpo.trajectory.store import ScreenshotStore

_MANIFEST = "manifest.json"
_ROWS = "trajectories.jsonl"
_SCREENSHOTS = "screenshots"


class Manifest(BaseModel):
    """What a data set says of itself. tokenizer: the fingerprint of the one its token ids are of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tokenizer: str
    trajectories: Annotated[list[Stored], Field(min_length=1)]
    screenshots: list[str]


@dataclass(frozen=True)
class Item:
    """A trajectory of a data set. document: its JSON, byte for byte."""

    stored: Stored
    trajectory: Trajectory
    document: bytes


class Dataset:
    """A data set to read. Raises ConfigError when the folder is none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.screenshots = ScreenshotStore(root / _SCREENSHOTS)
        try:
            self.manifest = Manifest.model_validate_json((root / _MANIFEST).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{root} is no exported data set ({_MANIFEST}: {error.strerror}); fix: make one with `arpo replay export`"
            ) from error
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].lower()
            raise ConfigError(f"{root / _MANIFEST}: {reason}; fix: export the data set again") from error

    def items(self, success_above: float) -> Iterator[Item]:
        """Every trajectory, one at a time, with its hash, its lengths and its pictures checked.

        Raises ConfigError for what is damaged and for what is no success (score above `success_above`).
        """
        path, expected = self.root / _ROWS, iter(self.manifest.trajectories)
        number = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    stored = next(expected, None)
                    if stored is None:
                        raise _damaged(path, number, "the manifest has fewer trajectories")
                    yield self._item(line.removesuffix(b"\n"), stored, number, success_above)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; fix: export the data set again") from error
        if next(expected, None) is not None:
            raise _damaged(path, number + 1, "the manifest has more trajectories")

    def _item(self, document: bytes, stored: Stored, number: int, success_above: float) -> Item:
        path = self.root / _ROWS
        if hashlib.sha256(document).hexdigest() != stored.sha256:
            raise _damaged(path, number, "its sha256 is not the manifest's")
        try:
            trajectory = Trajectory.model_validate_json(document)
        except ValidationError as error:
            raise _damaged(path, number, error.errors(include_url=False)[0]["msg"].lower()) from error
        if problem := _contradiction(trajectory, stored):
            raise _damaged(path, number, problem)
        if not trajectory.succeeded(success_above):
            raise ConfigError(
                f"{path}:{number}: score {trajectory.score} is no success with "
                f"replay.success_above={success_above}; fix: set a lower one, or export without that trajectory"
            )
        for sha256 in sorted(pictures(trajectory)):
            self.picture(sha256)
        return Item(stored=stored, trajectory=trajectory, document=document)

    def picture(self, sha256: str) -> bytes:
        """An encoded screenshot. Raises ConfigError when it is missing or damaged."""
        path = self.screenshots.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; fix: export the data set again") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ConfigError(f"{path}: its content has another sha256; fix: export the data set again")
        return data


def pictures(trajectory: Trajectory) -> set[str]:
    """sha256 of every screenshot that belongs to a trajectory, the one after the last action included."""
    shown = {image.sha256 for image in trajectory.images}
    return shown | ({trajectory.final_observation} if trajectory.final_observation else set())


def write_dataset(
    folder: Path, items: Iterable[tuple[Stored, bytes]], screenshots: ScreenshotStore, tokenizer: str
) -> Manifest:
    """Write index entries and their rows' JSON, in their order, with the screenshots; returns the manifest.

    Raises ConfigError when the folder holds something or cannot be made, when there is nothing to write, or when
    a screenshot is missing.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; fix: name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            scratch.chmod(0o755)  # mkdtemp makes it private
            manifest = _write(scratch, items, screenshots, tokenizer)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch)
            raise
        sync(folder.parent)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}; fix: name another folder"
        ) from error
    return manifest


def _write(
    scratch: Path, items: Iterable[tuple[Stored, bytes]], screenshots: ScreenshotStore, tokenizer: str
) -> Manifest:
    stored, needed = [], set()
    with (scratch / _ROWS).open("wb") as file:
        for entry, document in items:
            file.write(document + b"\n")
            stored.append(entry)
            needed |= pictures(Trajectory.model_validate_json(document))
    if not stored:
        raise ConfigError(
            "there is nothing to export; fix: look with `arpo replay list`, or leave out --task"
        )
    copies = ScreenshotStore(scratch / _SCREENSHOTS)
    for sha256 in sorted(needed):
        try:
            data = screenshots.get(sha256)
        except OSError as error:
            raise ConfigError(
                f"{screenshots.path(sha256)}: {error.strerror}; fix: put a copy of that screenshot back"
            ) from error
        if copies.put(data) != sha256:
            raise ConfigError(
                f"{screenshots.path(sha256)}: its content has another sha256; fix: put a copy of that screenshot back"
            )
    manifest = Manifest(tokenizer=tokenizer, trajectories=stored, screenshots=sorted(needed))
    (scratch / _MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for path in scratch.rglob("*"):
        sync(path)
    return manifest


def _contradiction(trajectory: Trajectory, stored: Stored) -> str | None:
    """What in a trajectory cannot be: sampled tokens outside its turns, or a gist that is another's."""
    length = len(trajectory.token_ids)
    of_turns = [False] * length
    for turn in trajectory.turns:
        if not 0 < turn.start <= turn.end <= length:
            return f"turn [{turn.start}, {turn.end}) is not within its {length} tokens"
        of_turns[turn.start : turn.end] = [True] * (turn.end - turn.start)
    if trajectory.loss_mask != of_turns:
        return "its loss_mask is not that of its turns"
    if sum(image.tokens for image in trajectory.images) > length:
        return "its pictures have more tokens than it"
    if trajectory.valid and stored != Stored.of(
        trajectory,
        stored.sha256,
        policy_version=stored.policy_version,
        step=stored.step,
        stored_at=stored.stored_at,
        origin=stored.origin,
    ):
        return "the manifest describes another trajectory"
    return None


def _damaged(path: Path, number: int, reason: str) -> ConfigError:
    return ConfigError(f"{path}:{number}: {reason}; fix: export the data set again")
