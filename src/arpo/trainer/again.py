"""Going on by itself after learner ranks were lost.

Invariant: a run is begun again only where something may have changed: each time from the newest checkpoint, and never more
than `launcher.max_restarts` times in a row from the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from arpo.checkpoints import folders
from arpo.config.model import Config
from arpo.trainer import checkpoints
from arpo.trainer.launch import LearnerLost
from arpo.trainer.stop import Stop

T = TypeVar("T")


async def replacing_lost_ranks(
    attempt: Callable[[int], Awaitable[T]], config: Config, stop: Stop, say: Callable[[str], None]
) -> T:
    """Run attempts, each told how many were before it, until one ends otherwise than by LearnerLost."""
    root = checkpoints.folder(config.run.dir / config.run.name)
    limit = config.launcher.max_restarts
    before = folders.latest(root)
    restarts = in_a_row = 0
    while True:
        try:
            return await attempt(restarts)
        except (LearnerLost, BaseExceptionGroup) as error:
            lost = _lost(error)
            if lost is None or stop.asked:
                raise
            newest = folders.latest(root)
            in_a_row = in_a_row + 1 if newest == before else 1
            before = newest
            if in_a_row > limit:
                raise LearnerLost(
                    f"{lost}; given up after launcher.max_restarts={limit} in a row; the same command goes on"
                ) from error
            restarts += 1
            say(f"{lost}; going on from {newest or 'the beginning'}")


def _lost(error: BaseException) -> LearnerLost | None:
    """The LearnerLost that an exception is, or that a group is all made of."""
    if isinstance(error, BaseExceptionGroup):
        lost = [_lost(inner) for inner in error.exceptions]
        return lost[0] if all(lost) else None
    return error if isinstance(error, LearnerLost) else None
