"""Runs the trackers beside training.

Invariant: no tracker ever makes a step wait or a run fail; one that fails is named once, and is not used any more.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

from arpo.trainer.trackers.base import State, Tracker, TrackerStart

_CLASSES = {"tensorboard": "TensorBoard", "wandb": "Wandb", "mlflow": "Mlflow", "swanlab": "Swanlab"}
_BEHIND = 256
"""Rows that a slow tracker may be behind."""
_CLOSING_S: Mapping[State, float] = {"finished": 60.0, "stopped": 5.0, "failed": 5.0}
"""How long the end of a run waits for its trackers. A signal may be followed by SIGKILL."""
_SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")

Say = Callable[[str], None]
Row = tuple[int, Mapping[str, float]]


class Trackers:
    """All trackers of a run, each on a thread of its own. Without any, every call does nothing."""

    def __init__(self, openers: Mapping[str, Callable[[], Tracker]] | None = None, say: Say = print) -> None:
        self._lanes = [_Lane(name, opener, say) for name, opener in (openers or {}).items()]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand metrics of a step to every tracker."""
        for lane in self._lanes:
            lane.put((step, dict(metrics)))

    def close(self, state: State) -> None:
        """Let every tracker finish, and wait for it as long as such an end of the run allows."""
        deadline = time.monotonic() + _CLOSING_S[state]
        for lane in self._lanes:
            lane.end(state)
        for lane in self._lanes:
            lane.join(deadline)


class _Lane:
    """One tracker: opened, used and closed on a thread. opener: makes it."""

    def __init__(self, name: str, opener: Callable[[], Tracker], say: Say) -> None:
        self._name = name
        self._opener = opener
        self._say = say
        self._rows: queue.Queue[Row | State] = queue.Queue(_BEHIND)
        self._given_up = False
        # a daemon: what hangs in a network must not keep the process
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, row: Row | State) -> None:
        """Next to be logged; a state closes the tracker."""
        if self._given_up:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._give_up(f"{_BEHIND} rows behind")

    def end(self, state: State) -> None:
        """Close the tracker after what it has still to log."""
        self.put(state)

    def join(self, deadline: float) -> None:
        """Wait until it is closed, or until the deadline."""
        if self._given_up:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("not done at the end of the run")

    def _run(self) -> None:
        try:
            tracker = self._opener()
            while not self._given_up:
                row = self._rows.get()
                if isinstance(row, str):
                    tracker.close(row)
                    return
                tracker.log(*row)
        except Exception as error:  # of somebody else's package, and the run does not depend on it
            if not self._given_up:
                self._give_up(reason(error))

    def _give_up(self, why: str) -> None:
        self._given_up = True
        self._say(f"warning: {self._name} does not track this run any more: {why}")


def reason(error: BaseException) -> str:
    """The first line of what an error says, without any secret of the environment in it."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 4 and any(word in name.upper() for word in _SECRET):
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def opener(name: str, start: TrackerStart) -> Callable[[], Tracker]:
    """Imports a tracker's package and makes it, when it is called."""

    def make() -> Tracker:
        module = importlib.import_module(f"arpo.trainer.trackers.{name}")
        return cast("Tracker", getattr(module, _CLASSES[name])(start))

    return make


@asynccontextmanager
async def tracking(names: Sequence[str], start: TrackerStart, say: Say) -> AsyncIterator[Trackers]:
    """The trackers of a run, told at the end how it ended."""
    trackers = Trackers({name: opener(name, start) for name in names}, say)
    state: State = "failed"
    try:
        yield trackers
        state = "finished"
    except asyncio.CancelledError:
        state = "stopped"
        raise
    finally:
        # not in a thread of the loop: one that hangs would be waited for a second time, at the loop's end
        trackers.close(state)
