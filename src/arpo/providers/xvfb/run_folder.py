"""A provider's private folder for sockets and guest files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from arpo.scratch import ScratchFolder

_LONGEST_BASE = 60  # a unix socket's path has at most 107 characters


class RunFolder(ScratchFolder):
    """A scratch folder whose path leaves room for the names of sockets."""

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        if len(str(base)) > _LONGEST_BASE:
            base = Path("/tmp")  # noqa: S108 - the name is unguessable, the mode 0700
        super().__init__("arpo-xvfb-", base)
