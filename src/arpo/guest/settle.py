"""Settling: when has the desktop answered to what was done to it?

A desktop is quiet once no pixel changed for `quiet_s` and its programs have stopped computing. Pixels alone would lie:
an office program works for half a second before a dialog appears, and a window is on the screen before it is painted.

The X server's DAMAGE events say when something was drawn, so a quiet screen costs nothing; frames are compared only
after something was drawn, because applications also redraw what is already there. A change no bigger than a text caret
does not count: carets blink for ever. So does nothing else that never ends: an animation or a program that computes for
minutes is waited for until the ceiling.
"""

from __future__ import annotations

import math
import select
import threading
import time
from dataclasses import dataclass
from typing import Any

from Xlib.display import Display
from Xlib.ext import damage

from .activity import Activity
from .screen import Screen, changed_box

_CARET_WIDTH = 3
_CARET_HEIGHT = 48
_LOOK_S = 0.05  # between two looks at the programs; shorter ones could not tell a busy one from an idle one
_IDLE_LOOKS = 2  # in a row; on a crowded machine a program may wait for a CPU during one look
_COMPARE_S = 0.015  # between two comparisons while the screen is busy


@dataclass(frozen=True)
class Settled:
    """How a wait ended: `quiet` is False when the ceiling was reached first."""

    quiet: bool
    seconds: float


@dataclass(frozen=True)
class _Rest:
    """A quiet desktop: when it changed last, and when it was last looked at."""

    changed: float
    looked: float


class Settler:
    """Waits for a quiet desktop. Thread-safe; waits are one after another.

    A wait may go on from the one before (`go_on`): what was quiet already need not be quiet as long again. Whoever does
    something to the desktop says so with `disturb`, since programs answer only after a while.
    """

    def __init__(self, display: str, screen: Screen, activity: Activity) -> None:
        self._display: Any = Display(display)
        self._screen = screen
        self._activity = activity
        self._lock = threading.Lock()
        self._display.damage_query_version()
        self._damage = self._display.screen().root.damage_create(damage.DamageReportNonEmpty)
        self._display.sync()
        self._rest: _Rest | None = None

    def disturb(self) -> None:
        """Something is done to the desktop: that it was quiet says nothing any more."""
        self._rest = None

    def settle(self, quiet_s: float, ceiling_s: float, *, go_on: bool = False) -> Settled:
        """Wait until the desktop is quiet, at most `ceiling_s`. go_on: quiet before counts, unless it was disturbed."""
        with self._lock:
            rest, self._rest = self._rest if go_on else None, None
            return self._settle(quiet_s, ceiling_s, rest)

    def _settle(self, quiet_s: float, ceiling_s: float, rest: _Rest | None) -> Settled:
        start = changed = looked = time.monotonic()
        idle_looks = 0
        if rest is not None and start - rest.looked < _LOOK_S and not self._drawn_within(0):
            changed, idle_looks = rest.changed, _IDLE_LOOKS
        self._clear()
        frame = self._screen.frame()
        programs = self._activity.programs()
        while True:
            now = time.monotonic()
            is_idle = idle_looks >= _IDLE_LOOKS
            if is_idle and now - changed >= quiet_s:
                self._rest = _Rest(changed, now)
                return Settled(True, now - start)
            if now - start >= ceiling_s:
                return Settled(False, now - start)
            until = min(looked + _LOOK_S, start + ceiling_s, changed + quiet_s if is_idle else math.inf)
            if self._drawn_within(until - now):
                self._clear()
                after = self._screen.frame()
                if _is_more_than_a_caret(changed_box(frame, after)):
                    changed = time.monotonic()
                frame = after
                time.sleep(_COMPARE_S)
            elapsed = time.monotonic() - looked
            if elapsed >= _LOOK_S:
                later = self._activity.programs()
                is_busy = self._activity.is_busy(programs, later, elapsed)
                idle_looks = 0 if is_busy else idle_looks + 1
                programs, looked = later, looked + elapsed

    def _drawn_within(self, seconds: float) -> bool:
        """Whether something was drawn, waiting at most `seconds` for it."""
        if self._display.pending_events():
            return True
        ready, _, _ = select.select([self._display.fileno()], [], [], max(seconds, 0))
        return bool(ready) and self._display.pending_events() > 0

    def _clear(self) -> None:
        """Forget what was drawn so far, so that the next drawing makes an event again."""
        self._display.damage_subtract(self._damage)
        self._display.sync()
        while self._display.pending_events():
            self._display.next_event()


def _is_more_than_a_caret(box: tuple[int, int, int, int] | None) -> bool:
    if box is None:
        return False
    left, top, right, bottom = box
    return right - left > _CARET_WIDTH or bottom - top > _CARET_HEIGHT
