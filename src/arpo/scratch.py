"""Folders for files that must not outlive the process that made them, even when it is killed.

Invariant: a folder belongs to a living process exactly while its lock is held, so folders of killed processes are
recognised (and removed by whoever makes the next one) without asking whether a process id is still the same process.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:
    # Windows has no such locks: there, what a killed process leaves is the system's to tidy up.
    fcntl = None  # type: ignore[assignment]


class ScratchFolder:
    """A new folder, mode 0700, under a name that begins with `prefix`.

    Making one removes those of the same prefix that killed processes left behind. base: where; unset: the system's
    temporary folder.
    """

    def __init__(self, prefix: str, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir())
        _remove_abandoned(base, prefix)
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        self._lock = (self._folder / "unlocked").open("w")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Only now is it a lock that others look at: one that is there is held, or was.
            (self._folder / "unlocked").rename(self._folder / "lock")
        self.path = self._folder / "files"
        """Where files go."""
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove the folder with everything in it. May be called again."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def _remove_abandoned(base: Path, prefix: str) -> None:
    if fcntl is None:
        return
    for folder in base.glob(f"{prefix}*"):
        # Another user's folder cannot be opened; one without a lock is being made right now, or removed.
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
