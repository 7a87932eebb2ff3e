"""What a run saves and goes on from: learner, replay buffer, task cursor, random generator and progress, as one state.

Invariant: a checkpoint holds the run as it was after a step, and nothing of the step that came after it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from arpo.checkpoints import folders
from arpo.checkpoints.folders import Checkpoint
from arpo.learner import checkpoint
from arpo.learner.checkpoint import CheckpointError
from arpo.learner.checkpointer import Checkpointer
from arpo.policy.load import Policy
from arpo.replay.buffer import ReplayBuffer
from arpo.trainer.launch import RunLearner
from arpo.trainer.schedule import Schedule
from arpo.trainer.state import Progress
from arpo.trainer.stop import Stop


class Saver:
    """Saves a run's parts and restores them. say: told in one line what a person should know."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        learner: RunLearner,
        replay: ReplayBuffer,
        policy: Policy,
        schedule: Schedule,
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._checkpointer = checkpointer
        self._learner = learner
        self._replay = replay
        self._policy = policy
        self._schedule = schedule
        self._rng = rng
        self._say = say
        self._unsaved: tuple[int, dict[str, Any]] | None = None

    def begun(self) -> None:
        """Call it before learner or buffer change: from now on they are amid a step, and there is nothing to save."""
        self._unsaved = None

    def finished(self, progress: Progress) -> None:
        """Call it when a step is whole: the next one opens groups and counts faults long before it begins."""
        state = {
            "progress": progress.model_dump(),
            "schedule": self._schedule.state(),
            "rng": self._rng.getstate(),
        }
        self._unsaved = progress.step, checkpoint.capture(state)

    async def save(self) -> None:
        """Begin a checkpoint of what has finished, once the one before is written. Raises CheckpointError."""
        if self._unsaved is None:
            return
        step, captured = self._unsaved
        await asyncio.to_thread(
            self._checkpointer.save,
            step,
            captured,
            learner=self._learner,
            replay=self._replay,
            policy=self._policy,
        )
        self._unsaved = None

    async def finish(self) -> None:
        """Wait until what is being saved has been. Raises CheckpointError when it failed."""
        await asyncio.to_thread(self._checkpointer.finish)

    @asynccontextmanager
    async def until_left(self, stop: Stop | None = None) -> AsyncIterator[None]:
        """Leaves no save under way; a stop inside saves what has finished and is not saved. Raises CheckpointError."""
        try:
            yield
        except BaseException:
            if stop is not None and stop.asked:
                await self._save_for(stop)
            else:
                try:
                    await self.finish()
                except CheckpointError as failed:
                    self._say(str(failed))
            raise
        await self.finish()

    async def _save_for(self, stop: Stop) -> None:
        await self.save()
        await self.finish()
        if not stop.overdue:
            newest = folders.latest(self._checkpointer.root)
            stop.result = f"{newest.path.name} is saved" if newest else "no step had finished"

    def restore(self, saved: Checkpoint) -> Progress:
        """Go back to a checkpoint. Raises CheckpointError when it cannot be loaded."""
        state = checkpoint.load(saved, learner=self._learner, replay=self._replay)
        self._schedule.restore(state["schedule"])
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))
        self._say(f"resuming from {saved}")
        return Progress.model_validate(state["progress"])
