"""Where a run keeps trajectories and screenshots.

Screenshots are content-addressed: one file a distinct picture, named by its sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from pydantic import ValidationError

from arpo.files import write_atomic
from arpo.protocol.problems import ArpoError
from arpo.trajectory.record import Trajectory

ImageSource = Callable[[str], bytes]
"""The encoded picture with a sha256 (`ScreenshotStore.get`)."""


class ScreenshotStore:
    """`<root>/<sha[:2]>/<sha>.png`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the picture with that hash is or would be."""
        return self.root / sha256[:2] / f"{sha256}.png"

    def put(self, data: bytes) -> str:
        """Keep a picture; returns its sha256. Keeping it twice costs nothing."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if not path.exists():
            write_atomic(path, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """The encoded picture. Raises FileNotFoundError."""
        return self.path(sha256).read_bytes()


class TrajectoryLog:
    """`<root>/step-000001.jsonl`: one line a trajectory, appended as episodes end."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def abandon_after(self, step: int, keep: Set[str] = frozenset()) -> None:
        """Keep the lines of later steps, which will be taken again, aside in `step-N.abandoned-K.jsonl`.

        keep: ids of the episodes whose lines stay: they ended before the state that the run goes on from.
        """
        for path in self._files():
            if int(path.stem.removeprefix("step-")) <= step:
                continue
            stays: list[bytes] = []
            goes: list[bytes] = []
            for line in path.read_bytes().splitlines(keepends=True):
                (stays if _episode_id(line) in keep else goes).append(line)
            if not goes:
                continue
            numbers = [
                int(one.stem.rpartition("-")[2]) for one in self.root.glob(f"{path.stem}.abandoned-*.jsonl")
            ]
            # the copy first: a kill in between leaves a line twice, never nowhere
            gone = path.with_name(f"{path.stem}.abandoned-{max(numbers, default=0) + 1}.jsonl")
            write_atomic(gone, b"".join(goes))
            if stays:
                write_atomic(path, b"".join(stays))
            else:
                path.unlink()

    def find(self, episode_ids: Set[str]) -> dict[str, Trajectory]:
        """The recorded trajectories with these ids that are there; the latest of an id.

        A line that a kill has cut short is nobody's. Raises ArpoError for another damaged one of these ids.
        """
        missing, found = set(episode_ids), {}
        for path in reversed(self._files()):
            if not missing:
                break
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if (episode_id := _episode_id(line)) in missing:
                        found[str(episode_id)] = _parsed(line, path, number)
            missing -= found.keys()
        return found

    def _files(self) -> list[Path]:
        return sorted(
            path for path in self.root.glob("step-*.jsonl") if path.stem.removeprefix("step-").isdecimal()
        )

    def append(self, step: int, trajectory: Trajectory) -> None:
        """Append to the file of a training step."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._file(step).open("a", encoding="utf-8") as file:
            file.write(trajectory.model_dump_json() + "\n")

    def read(self, step: int) -> Iterator[Trajectory]:
        """The trajectories of a step, one at a time; none when nothing was recorded.

        Raises ArpoError for a damaged line.
        """
        path = self._file(step)
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _parsed(line, path, number)

    def _file(self, step: int) -> Path:
        return self.root / f"step-{step:06d}.jsonl"


def _episode_id(line: bytes) -> str | None:
    """The id of a line of the log; None for one that a kill has cut short, be it by its end alone."""
    if not line.endswith(b"\n"):
        return None
    try:
        return str(json.loads(line)["episode_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _parsed(line: bytes, path: Path, number: int) -> Trajectory:
    try:
        return Trajectory.model_validate_json(line)
    except ValidationError as error:
        raise ArpoError(
            f"{path}:{number} is no trajectory (a run that was killed may have cut it short); fix: remove that line"
        ) from error
