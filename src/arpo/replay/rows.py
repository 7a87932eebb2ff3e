"""Rows: stored trajectories, one file each, named by the sha256 of their JSON.

Invariant: a row that is there under its name is whole and never changes; whoever reads one has its hash checked.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator, Set
from pathlib import Path

from pydantic import ValidationError

from arpo.files import write_atomic
from arpo.replay.errors import ReplayError
from arpo.trajectory import Trajectory

_SUFFIX = ".json.gz"
# Most of a row is repeated ids of image tokens and zeros: higher levels take longer and gain little.
_LEVEL = 4


class RowStore:
    """`<root>/<sha[:2]>/<sha>.json.gz`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the row with that hash is or would be."""
        return self.root / sha256[:2] / f"{sha256}{_SUFFIX}"

    def put(self, trajectory: Trajectory) -> str:
        """Keep a trajectory; returns its sha256. Raises ReplayError for a log-prob that JSON cannot hold."""
        if not all(map(math.isfinite, trajectory.logprobs)):
            raise ReplayError(f"episode {trajectory.episode_id} has a log-prob that is no number: not stored")
        return self.put_document(trajectory.model_dump_json().encode())

    def put_document(self, document: bytes) -> str:
        """Keep a trajectory's JSON byte for byte; a row that is there already is written again only if it is damaged."""
        sha256 = hashlib.sha256(document).hexdigest()
        try:
            self.document(sha256)
        except ReplayError:
            write_atomic(self.path(sha256), gzip.compress(document, _LEVEL, mtime=0))
        return sha256

    def document(self, sha256: str) -> bytes:
        """A row's JSON. Raises ReplayError when it is missing or is not what was stored."""
        path = self.path(sha256)
        fix = "fix: put a copy of it back, or go on with replay.rule=off"
        try:
            document = gzip.decompress(path.read_bytes())
        except FileNotFoundError as error:
            raise ReplayError(f"replay row {path} is missing; {fix}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise ReplayError(f"replay row {path} is damaged: {error}; {fix}") from error
        if hashlib.sha256(document).hexdigest() != sha256:
            raise ReplayError(f"replay row {path} is damaged: its content has another sha256; {fix}")
        return document

    def get(self, sha256: str) -> Trajectory:
        """A stored trajectory. Raises ReplayError."""
        document = self.document(sha256)
        try:
            return Trajectory.model_validate_json(document)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise ReplayError(
                f"replay row {self.path(sha256)} is of another version of arpo: {reason}"
            ) from error

    def hashes(self) -> Iterator[str]:
        """sha256 of every row that is there."""
        return (path.name.removesuffix(_SUFFIX) for path in self.root.glob(f"??/[!.]*{_SUFFIX}"))

    def keep_only(self, wanted: Set[str]) -> int:
        """Remove every other row, and what killed writers left behind; returns how many rows went."""
        for leftover in self.root.glob("??/.*"):
            leftover.unlink(missing_ok=True)
        unwanted = [sha256 for sha256 in self.hashes() if sha256 not in wanted]
        for sha256 in unwanted:
            self.path(sha256).unlink()
        return len(unwanted)
