"""Which tasks a run trains on: seeded passes over the set, resumable by two integers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from arpo.tasks.model import Task


@dataclass
class TaskCursor:
    """An endless iterator over tasks, in a new random order each pass; the order depends on the seed and the pass alone.

    per_step: tasks that a step takes; they are all different: a pass whose rest does not fill a step ends early. As every
    pass has an order of its own, no task is left out for long. Raises ValueError when the set has fewer.
    """

    tasks: Sequence[Task]
    seed: int
    per_step: int
    epoch: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if self.per_step > len(self.tasks):
            raise ValueError(f"{self.per_step} tasks wanted of {len(self.tasks)}")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Task:
        if self.index >= len(self.tasks) // self.per_step * self.per_step:
            self.epoch, self.index = self.epoch + 1, 0
        task = self.tasks[self._order(self.epoch)[self.index]]
        self.index += 1
        return task

    def state(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"epoch": self.epoch, "index": self.index}

    def restore(self, state: dict[str, int]) -> None:
        """Undo `state`."""
        self.epoch, self.index = state["epoch"], state["index"]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.tasks)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)  # noqa: S311 - not a secret
        return order
