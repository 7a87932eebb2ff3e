"""What a session must be, from what was sent and answered: the model that the env-server is compared with.

Written from docs/env-server.md. A session's screen and file are computed by doing the acknowledged actions to a machine
of the model's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from recorded_desktops import FILE, SCREEN

from arpo.protocol.actions import TERMINAL, Action, Click, Fail
from arpo.protocol.problems import ProblemCode
from arpo.providers.simulated.drawing import render
from arpo.providers.simulated.machine import Machine

START, REPEAT, JOIN = "start", "repeat", "join"
"""What becomes of a step or an evaluation that is not refused."""


@dataclass(eq=False)
class Episode:
    """One session.

    key, body: with which it was created. performed: actions on its desktop. problem: why it ended.
    """

    id: str
    lease: int
    owner: str
    tag: str
    goal: str
    idle_s: float
    key: str | None
    body: dict[str, object]
    last_request: float
    state: str = "resetting"
    seq: int = 0
    performed: list[Action] = field(default_factory=list)
    last_step: list[Action] | None = None
    last_action: Action | None = None
    last_reply: dict[str, object] | None = None
    running: list[Action] | None = None
    done: bool = False
    score: float | None = None
    evaluations: int = 0
    problem: ProblemCode | None = None
    guest_lost: bool = False

    def __repr__(self) -> str:
        return f"<{self.tag} of {self.owner}: {self.state}, seq {self.seq}>"

    @property
    def alive(self) -> bool:
        """Whether it holds a desktop."""
        return self.state not in ("failed", "closed")

    @property
    def busy(self) -> bool:
        """Whether its desktop is at work: in these tests, waits at a gate."""
        return self.state in ("resetting", "stepping", "evaluating")

    def screen(self) -> bytes:
        """What its desktop shows, as PNG."""
        return _played(self.tag, tuple(self.performed))[0]

    def step_answer(self, lease: int, seq: int, actions: list[Action]) -> str | ProblemCode:
        """What a step must lead to."""
        if self.state == "closed" or lease != self.lease:
            return ProblemCode.LEASE_LOST
        if self.last_reply is not None and seq == self.seq:
            return REPEAT if actions == self.last_step else ProblemCode.SEQ_CONFLICT
        if self.problem is not None:
            return self.problem
        if seq != self.seq + 1:
            return ProblemCode.SEQ_CONFLICT
        if self.state == "stepping":
            return JOIN if actions == self.running else ProblemCode.SEQ_CONFLICT
        if self.state != "ready":
            return ProblemCode.NOT_READY
        if self.score is not None:
            return ProblemCode.INVALID_REQUEST
        if any(isinstance(a, Click) and a.x >= SCREEN[0] for a in performed_of(actions)):
            return ProblemCode.INVALID_ACTION
        return ProblemCode.DESKTOP_LOST if self.guest_lost else START

    def evaluate_answer(self, lease: int) -> str | ProblemCode:
        """What an evaluation must lead to."""
        if self.state == "closed" or lease != self.lease:
            return ProblemCode.LEASE_LOST
        if self.problem is not None:
            return self.problem
        if self.score is not None:
            return REPEAT
        if self.state == "evaluating":
            return JOIN
        if self.state != "ready":
            return ProblemCode.NOT_READY
        return ProblemCode.DESKTOP_LOST if self.guest_lost and not self.gave_up else START

    def heartbeat_answer(self, lease: int) -> ProblemCode | None:
        """Why a heartbeat must be refused, if it must."""
        if self.state == "closed" or lease != self.lease:
            return ProblemCode.LEASE_LOST
        return self.problem

    def applied(self, actions: list[Action]) -> None:
        """A step was acknowledged, or is known to have been applied."""
        performed = performed_of(actions)
        on_screen = [action for action in performed if not isinstance(action, TERMINAL)]
        before = self.screen()
        self.performed += on_screen
        self.last_action = performed[-1] if performed else self.last_action
        self.done = self.done or any(isinstance(action, TERMINAL) for action in actions)
        self.seq += 1
        self.state, self.running, self.last_step = "ready", None, actions
        self.last_reply = {
            "seq": self.seq,
            "observation": observed(self.screen(), unchanged=self.screen() == before),
            "done": self.done,
        }

    def evaluated(self) -> None:
        """It was scored: by what is on its desktop now."""
        if not self.gave_up:
            self.evaluations += 1
        content = _played(self.tag, tuple(self.performed))[1]
        self.score = float(content == f"{self.tag}:{self.goal}" and not self.gave_up)
        self.state = "ready"

    def failed(self, problem: ProblemCode) -> None:
        """It ended with a problem, and stays until its client releases it or falls silent."""
        self.state, self.running, self.problem = "failed", None, problem

    def closed(self) -> None:
        """It was released, or its client fell silent."""
        self.state, self.running, self.problem = "closed", None, ProblemCode.LEASE_LOST

    @property
    def gave_up(self) -> bool:
        """Whether the last action said that the task cannot be done."""
        return isinstance(self.last_action, Fail)


def performed_of(actions: Sequence[Action]) -> list[Action]:
    """Actions up to the first that ends the episode."""
    ends = [number for number, action in enumerate(actions) if isinstance(action, TERMINAL)]
    return list(actions[: ends[0] + 1] if ends else actions)


def observed(png: bytes, *, unchanged: bool = False) -> dict[str, object]:
    """An observation of a screen, its picture raw."""
    screenshot = {
        "media_type": "image/png",
        "width": SCREEN[0],
        "height": SCREEN[1],
        "sha256": hashlib.sha256(png).hexdigest(),
        "data": b"" if unchanged else png,
    }
    return {"screenshot": screenshot, "unchanged": unchanged}


@lru_cache(maxsize=2000)
def _played(tag: str, actions: tuple[Action, ...]) -> tuple[bytes, str]:
    """The screen and the file after a task's setup and actions."""
    machine = Machine(SCREEN)
    machine.files.write(FILE, f"{tag}:")
    machine.start_app(["notes", FILE])
    for action in actions:
        machine.apply(action)
    return render(machine.scene(), SCREEN), machine.files.read_text(FILE)
