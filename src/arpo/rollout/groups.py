"""What the scheduler hands out and gets back: episodes, the groups they belong to, the batches that a step learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from arpo.tasks.model import Task
from arpo.trajectory import Trajectory


@dataclass(frozen=True)
class Episode:
    """What to run: one attempt at a task for one place in a group."""

    id: str
    group_id: str
    task: Task
    seed: int


@dataclass(eq=False)
class Group:
    """The trajectories of one task that share an advantage baseline; a thing of its own, equal to itself alone.

    number: in the order in which groups were opened, which is that of the tasks. places: valid trajectories by place.
    attempts: how often a place was run again; outages: how many of those because nobody could reach the environment.
    lost: places that stay empty, because the retries of the group are used up or because it was closed early.
    """

    id: str
    number: int
    task: Task
    size: int
    places: dict[int, Trajectory] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    lost: set[int] = field(default_factory=set)
    outages: int = 0

    @property
    def trajectories(self) -> list[Trajectory]:
        """The valid ones in the order of their places, whichever ended first: replay and learner go by it."""
        return [self.places[place] for place in sorted(self.places)]

    @property
    def retries(self) -> int:
        """Episodes that were run again because their environment failed; the places share a bound."""
        return self.attempts.total() - self.outages

    @property
    def closed(self) -> bool:
        """All places are decided."""
        return len(self.places) + len(self.lost) >= self.size


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    groups: in the order in which they were opened. spare: groups that closed and are not learned from (their scores
    say nothing, or another group was faster); their successes are as good for the replay buffer as any.
    """

    groups: list[Group]
    spare: list[Group] = field(default_factory=list)


@dataclass(frozen=True)
class Pending:
    """A group that has been opened and not been learned from: what a checkpoint keeps of it.

    number, task_id: of the group. ended: ids of its valid episodes, which are in the trajectory log.
    spare: it is closed and only waits to be handed over with the next batch. attempts: again, of the first places.
    lost: places. outages: as in `Group`.
    """

    number: int
    task_id: str
    ended: tuple[str, ...]
    spare: bool = False
    attempts: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    outages: int = 0


@dataclass(frozen=True)
class Begun:
    """A group of an earlier process to go on with: as `Pending`, with its task and the trajectories that are there."""

    number: int
    task: Task
    trajectories: Sequence[Trajectory] = ()
    attempts: Sequence[int] = ()
    lost: Sequence[int] = ()
    outages: int = 0
