"""The replay buffer of ARPO (arXiv 2505.16282, section 3.3).

Invariant: only valid trajectories that succeeded are stored, and a group never gets its own members back:
injection comes before storing. In memory are index entries alone; a row is read when it is injected.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from statistics import fmean, pstdev

from arpo.config.sections import ReplaySection
from arpo.replay.index import Index, Stored
from arpo.replay.rows import RowStore
from arpo.trajectory import GroupMember, Trajectory

_COUNTED = ("injected", "stored", "imported", "evicted")


class ReplayBuffer:
    """For every task the latest successful trajectories, at most `capacity` of them and `max_trajectories` in all.

    rows: where they are kept; the screenshots stay in the run's store.
    """

    def __init__(self, section: ReplaySection, rows: RowStore) -> None:
        self._section = section
        self._rows = rows
        self._stored: list[Stored] = []
        self._taken: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._injected: list[Stored] = []
        self._saved: frozenset[str] = frozenset()

    @property
    def stored(self) -> Sequence[Stored]:
        """Index entries, oldest first."""
        return tuple(self._stored)

    @property
    def taken(self) -> Set[str]:
        """sha256 of the rows that were taken in from the inbox, those that have left since included."""
        return self._taken

    def close_group(
        self, trajectories: Sequence[Trajectory], rng: random.Random, *, step: int | None = None
    ) -> list[GroupMember]:
        """Apply the rule to the finished trajectories of one task.

        When the group failed as a whole (standard deviation of the scores below `inject_std_below`, mean
        below `inject_mean_below`), a stored success of the task, drawn uniformly, takes the place of the
        first failure. Then the fresh successes (score above `success_above`) are stored. The deviation is
        over n, as in the published code. Rule `off` passes the group through and stores nothing. step: the
        training step, for the record. Raises ValueError when a trajectory is invalid, or when they are of
        several tasks, ReplayError when the row that is to be injected is damaged.
        """
        _check_group(trajectories)
        members = [GroupMember(trajectory=trajectory) for trajectory in trajectories]
        if self._section.rule == "off" or not members:
            return members
        candidates = self._candidates(trajectories)
        if candidates:
            drawn = rng.choice(candidates)
            above = self._section.success_above
            failures = [index for index, t in enumerate(trajectories) if not t.succeeded(above)]
            members[failures[0]] = GroupMember(trajectory=self._rows.get(drawn.sha256), replayed=True)
            self._injected.append(drawn)
            self._counts["injected"] += 1
        self.store(trajectories, step=step)
        return members

    def injects(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether `close_group` would put a stored success into this group. Raises ValueError as it does."""
        _check_group(trajectories)
        return self._section.rule != "off" and bool(self._candidates(trajectories))

    def store(self, trajectories: Sequence[Trajectory], *, step: int | None = None) -> None:
        """Store the successes of a group that is not learned from; nothing with rule `off`. step: as in `close_group`."""
        _check_group(trajectories)
        if self._section.rule == "off":
            return
        for trajectory in trajectories:
            if trajectory.succeeded(self._section.success_above):
                self._add(Stored.of_rollout(trajectory, self._rows.put(trajectory), step=step))
                self._counts["stored"] += 1

    def take(self, source: str, entry: Stored | None) -> None:
        """Note that a row of the inbox was taken in, as what (None: it is stored already)."""
        self._taken.add(source)
        if entry is not None:
            self._add(entry)
            self._counts["imported"] += 1

    def needed_rows(self) -> set[str]:
        """sha256 of every row that the buffer, or what it saved last, refers to."""
        return {entry.sha256 for entry in self._stored} | self._saved

    def screenshots(self) -> set[str]:
        """sha256 of every screenshot that the stored trajectories need."""
        return {sha256 for entry in self._stored for sha256 in entry.images}

    def metrics(self, policy_version: int) -> dict[str, float]:
        """Sizes, versions and ages, and how many were injected, stored, imported and evicted since the last call.

        An age is `policy_version` minus the version that sampled the trajectory. All are 0 where there is none.
        """
        versions = [entry.policy_version for entry in self._stored]
        ages = [policy_version - version for version in versions]
        injected = [policy_version - entry.policy_version for entry in self._injected]
        counts, self._counts, self._injected = self._counts, Counter(), []
        return {
            "size": float(len(self._stored)),
            "tasks": float(len({entry.task_id for entry in self._stored})),
            **{name: float(counts[name]) for name in _COUNTED},
            "version_min": float(min(versions, default=0)),
            "version_max": float(max(versions, default=0)),
            "age_mean": fmean(ages) if ages else 0.0,
            "age_max": float(max(ages, default=0)),
            "injected_age_mean": fmean(injected) if injected else 0.0,
            "injected_age_max": float(max(injected, default=0)),
        }

    def save(self, folder: Path) -> None:
        """Write the index into `folder`; rows and screenshots stay where they are."""
        Index(stored=self._stored, taken=sorted(self._taken), counts=self._counts).write(folder)
        self._saved = frozenset(entry.sha256 for entry in self._stored)

    def load(self, folder: Path) -> None:
        """Replace the content by what `save` wrote; a smaller capacity keeps the latest. Rule `off` reads nothing.

        Raises OSError when there is nothing, ValueError when it is damaged, ReplayError (which is one) when a row
        is damaged or missing.
        """
        restored = Index() if self._section.rule == "off" else Index.read(folder)
        for entry in restored.stored:
            self._rows.document(entry.sha256)
        self._stored, self._injected = [], []
        self._taken, self._counts = set(restored.taken), Counter(restored.counts)
        self._saved = frozenset(entry.sha256 for entry in restored.stored)
        for entry in restored.stored:
            self._add(entry)

    def _add(self, entry: Stored) -> None:
        """Append; the oldest of a task that is over its capacity leaves, and the oldest of all when there are too many."""
        self._stored.append(entry)
        of_task = [index for index, one in enumerate(self._stored) if one.task_id == entry.task_id]
        over = of_task[:1] if len(of_task) > self._section.capacity else []
        if not over and len(self._stored) > self._section.max_trajectories:
            over = [0]
        for index in over:
            del self._stored[index]
            self._counts["evicted"] += 1

    def _candidates(self, trajectories: Sequence[Trajectory]) -> list[Stored]:
        """The stored successes of which one is to take the place of a failure in this group; none for most groups."""
        failures = any(not t.succeeded(self._section.success_above) for t in trajectories)
        if not failures or not self._failed_as_a_whole(trajectories):
            return []
        return [entry for entry in self._stored if entry.task_id == trajectories[0].task_id]

    def _failed_as_a_whole(self, trajectories: Sequence[Trajectory]) -> bool:
        scores = [_score(trajectory) for trajectory in trajectories]
        return (
            pstdev(scores) < self._section.inject_std_below
            and fmean(scores) < self._section.inject_mean_below
        )


def _check_group(trajectories: Sequence[Trajectory]) -> None:
    if not all(trajectory.valid for trajectory in trajectories):
        raise ValueError("an invalid trajectory cannot be in a group")
    if not all(trajectory.trainable for trajectory in trajectories):
        raise ValueError("a trajectory without sampled tokens cannot be in a group")
    if len({trajectory.task_id for trajectory in trajectories}) > 1:
        raise ValueError("a group is the trajectories of one task")


def _score(trajectory: Trajectory) -> float:
    if trajectory.score is None:
        raise ValueError(f"episode {trajectory.episode_id} was not evaluated")
    return trajectory.score
