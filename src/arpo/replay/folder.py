"""A run's replay folder: what is stored, what waits to be taken in, and whose token ids they are.

    replay/rows/        the rows (`RowStore`)
    replay/inbox/       imported trajectories, one file each, which training takes in when it starts
    replay/tokenizer.json   the fingerprint of the policy's tokenizer

Invariant: a row that is named here, in the buffer or in a checkpoint's index is not removed; while somebody holds the
folder's lock none is.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from arpo.files import write_atomic
from arpo.replay.errors import ReplayError
from arpo.replay.index import INDEX_FILE, Index, Stored
from arpo.replay.rows import RowStore


class InboxEntry(BaseModel):
    """An imported trajectory that training takes in once. tokenizer: the fingerprint of the one its ids are of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tokenizer: str
    stored: Stored


class ReplayFolder:
    """`<run>/replay/`; made when something is first put there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = RowStore(root / "rows")
        self._inbox = root / "inbox"
        self._tokenizer = root / "tokenizer.json"

    def record_tokenizer(self, fingerprint: str) -> None:
        """Note the tokenizer of the run's policy."""
        if self.tokenizer() != fingerprint:
            write_atomic(self._tokenizer, json.dumps({"sha256": fingerprint}).encode())

    def tokenizer(self) -> str | None:
        """The fingerprint of the run's tokenizer; None before its policy was loaded once."""
        if not self._tokenizer.exists():
            return None
        try:
            return str(json.loads(self._tokenizer.read_bytes())["sha256"])
        except (ValueError, KeyError) as error:
            raise ReplayError(
                f"{self._tokenizer} is damaged; fix: remove it, training writes it again"
            ) from error

    def deliver(self, entry: InboxEntry) -> bool:
        """Put an entry, whose row is stored, into the inbox; False when it is there already."""
        path = self.inbox_path(entry.stored.sha256)
        if path.exists():
            return False
        write_atomic(path, entry.model_dump_json().encode())
        return True

    def inbox_path(self, sha256: str) -> Path:
        """Where the inbox's entry of a row is or would be."""
        return self._inbox / f"{sha256}.json"

    def inbox(self) -> list[InboxEntry]:
        """Everything that was ever imported, oldest first. Raises ReplayError for a damaged entry."""
        entries = []
        for path in self._inbox.glob("[!.]*.json"):
            try:
                entries.append(InboxEntry.model_validate_json(path.read_bytes()))
            except ValueError as error:
                raise ReplayError(f"{path} is damaged; fix: remove it and import again") from error
        return sorted(entries, key=lambda entry: (entry.stored.stored_at, entry.stored.sha256))

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Wait for the folder and keep its rows: one who imports alone, those who read together."""
        with self._locked(fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            yield

    def collect_garbage(self, needed: Set[str], checkpoints: Path) -> int:
        """Remove the rows that nobody needs; returns how many.

        needed: by the buffer. checkpoints: the folder of checkpoints; whatever index lies in one, finished or
        not, its rows stay. Does nothing when somebody holds the lock. Raises ReplayError, and removes nothing,
        when an index cannot be read.
        """
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                in_use = set(needed) | {entry.stored.sha256 for entry in self.inbox()}
                for path in checkpoints.glob(f"*/replay/{INDEX_FILE}"):
                    in_use |= _rows_of(path)
                for leftover in self._inbox.glob(".*"):
                    leftover.unlink(missing_ok=True)
                return self.rows.keep_only(in_use)
        except BlockingIOError:
            return 0

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        # the folder itself is the lock: reading a run needs no right to write there
        if not self.root.is_dir():
            yield  # there is nothing to keep
            return
        handle = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(handle, mode)
            yield
        finally:
            os.close(handle)


def _rows_of(path: Path) -> set[str]:
    try:
        return {entry.sha256 for entry in Index.read(path.parent).stored}
    except FileNotFoundError:
        return set()  # its checkpoint was removed, or published: then the buffer knows what it saved
    except (OSError, ValueError) as error:
        raise ReplayError(f"{path} cannot be read, so no replay row is removed") from error
