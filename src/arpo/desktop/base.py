"""The contract of a desktop, as sessions use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from arpo.protocol.actions import Action
from arpo.tasks.model import Task


class Desktop(Protocol):
    """A leased desktop. Failures are `ProblemError`s (never a score).

    Call order: `reset`, any number of `execute`, `evaluate`; then, perhaps, `clean`; then `reset` again.
    """

    @property
    def screen(self) -> tuple[int, int]:
        """Width and height in pixels."""

    async def clean(self) -> None:
        """Get a guest that nobody has touched, ahead of the next reset, which is the quicker for it.

        The episode is over: its files go. Raises ProblemError start_failed or reset_failed.
        """

    async def reset(self, task: Task) -> bytes:
        """Bring a clean guest into the task's initial state; returns the first screenshot (PNG).

        Raises ProblemError start_failed, reset_failed (no clean guest), setup_failed (the task's setup), desktop_lost or
        invalid_task.
        """

    async def execute(self, actions: Sequence[Action]) -> bytes:
        """Perform actions, wait for quiet pixels; returns the new screenshot (PNG).

        Terminal actions (`finished`, `fail`, `call_user`) are remembered for `evaluate` and do nothing on the screen.
        Raises ProblemError desktop_lost, step_timeout or invalid_action.
        """

    async def evaluate(self) -> float:
        """OSWorld's score in [0, 1]. Raises ProblemError evaluator_failed, evaluator_timeout or desktop_lost."""

    async def close(self) -> None:
        """Stop the guest and leave nothing behind."""
