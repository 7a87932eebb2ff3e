"""`python -m arpo.server.reload FOLDER ...`: an env-server that starts again whenever its code changes, for development.

FOLDER gets a copy of the installed package, which the server runs from; whoever writes files there (`skaffold dev`) changes
the server. The other arguments are those of `arpo-env-server`. SIGTERM and SIGINT end both, with the server's exit code.

Invariant: at most one server runs at a time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import arpo

_LOOK_EVERY_S = 0.5
_STOP_S = 60.0

_Seen = frozenset[tuple[str, int]]


def main(arguments: Sequence[str]) -> int:
    """Run servers until a signal ends the last; returns its exit code."""
    if not arguments or arguments[0].startswith("-"):
        print("error: no folder; fix: python -m arpo.server.reload FOLDER [options]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    shutil.copytree(
        Path(arpo.__file__).parent,
        folder / "arpo",
        ignore=shutil.ignore_patterns("__pycache__"),
        copy_function=_copy_unless_there,
        dirs_exist_ok=True,
    )
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    command = [sys.executable, "-m", "arpo.server.cli", *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    while True:
        seen = _files(folder)
        server = subprocess.Popen(command, env=environment, cwd=folder)
        while not ended and _files(folder) == seen:
            time.sleep(_LOOK_EVERY_S)  # one that broke down waits for the change that mends it
        if server.poll() is None:
            server.send_signal(ended[0] if ended else signal.SIGTERM)
        try:
            code = server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
        if ended:
            return code
        print("the code has changed: starting the env-server again", file=sys.stderr, flush=True)


def _copy_unless_there(source: str, target: str) -> None:
    """What was written there before this program came, or before it was started again, is newer."""
    if not Path(target).exists():
        shutil.copy2(source, target)


def _files(folder: Path) -> _Seen:
    return frozenset((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
