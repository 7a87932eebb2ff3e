"""What a tracker is, and what it is told when it is opened."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from arpo.files import write_atomic

State = Literal["finished", "stopped", "failed"]
"""How a run ended. stopped: by a signal."""

PROJECT = "arpo"
"""Project or experiment that a service lists the run under."""


class Tracker(Protocol):
    """Takes a run's metrics. Any call may raise anything: the run goes on without the tracker.

    All calls come from one thread, in order; they may take long.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step; steps never go down, and one may come in several parts."""

    def close(self, state: State) -> None:
        """The run ended."""


@dataclass(frozen=True)
class TrackerStart:
    """What a tracker begins with.

    root: the run directory; what is kept on this machine goes into a folder with the tracker's name there.
    config: the resolved configuration. step: from which the run goes on, 0 when it begins. standing: the metrics that
    stand at that step; all of later steps are abandoned and will be made again.
    """

    root: Path
    name: str
    config: Mapping[str, Any]
    step: int
    standing: Mapping[str, float]

    def run_id(self, tracker: str) -> str | None:
        """The id under which the service knows the run; None when it does not know it yet."""
        path = self._id_file(tracker)
        return path.read_text(encoding="utf-8").strip() if path.exists() else None

    def keep_run_id(self, tracker: str, run_id: str) -> str:
        """Keep the id, so that the run goes on under it after a restart; returns it."""
        write_atomic(self._id_file(tracker), f"{run_id}\n".encode())
        return run_id

    def new_run_id(self, tracker: str) -> str:
        """An id that no other run has, kept."""
        return self.keep_run_id(tracker, secrets.token_hex(8))

    def _id_file(self, tracker: str) -> Path:
        return self.root / tracker / "run_id"


def flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting of a configuration."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
