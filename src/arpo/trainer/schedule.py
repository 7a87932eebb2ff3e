"""The scheduler of a run: what it draws its groups from, and what of it a checkpoint keeps.

Invariant: at any moment `state` holds every group that has been opened and not been learned from, and the tasks that come
after them; a run that goes on from it leaves no task out, and rolls out no episode again that had ended by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from arpo.config.model import Config
from arpo.protocol.problems import ConfigError
from arpo.rollout.groups import Begun, Group, Pending
from arpo.rollout.rules import SchedulerRules
from arpo.rollout.scheduler import Scheduler
from arpo.tasks.model import Task
from arpo.trainer.cursor import TaskCursor
from arpo.trajectory.store import TrajectoryLog

_LABEL = "train"


class Schedule:
    """Makes the scheduler, once the run stands where it goes on.

    learns: whether a closed group can teach anything. log: where the trajectories of groups in flight are found again.
    """

    def __init__(
        self, config: Config, tasks: Sequence[Task], log: TrajectoryLog, learns: Callable[[Group], bool]
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._log = log
        self._learns = learns
        self._cursor = TaskCursor(tasks, config.run.seed, config.trainer.tasks_per_step)
        self._scheduler: Scheduler | None = None
        self._pending: Sequence[Pending] = ()
        self._first_number = 0

    def begin(self, version: int, steps: int) -> Scheduler:
        """The scheduler of the run from here on, for that many steps.

        Raises ConfigError when the task of a group in flight is gone.
        """
        by_id = {task.id: task for task in self._tasks}
        gone = [p.task_id for p in self._pending if p.task_id not in by_id]
        if gone:
            raise ConfigError(
                f"task {gone[0]}, which the run has begun, is not in tasks.set={self._config.tasks.set} any more; "
                "fix: put it back, or begin a new run.name"
            )
        recorded = self._log.find({episode_id for p in self._pending for episode_id in p.ended})
        pending, spare = (
            [
                Begun(
                    p.number,
                    by_id[p.task_id],
                    [recorded[name] for name in p.ended if name in recorded],
                    p.attempts,
                    p.lost,
                    p.outages,
                )
                for p in self._pending
                if p.spare is of_spare
            ]
            for of_spare in (False, True)
        )
        rollout, trainer = self._config.rollout, self._config.trainer
        self._scheduler = Scheduler(
            self._cursor,
            SchedulerRules(
                group_size=rollout.group_size,
                groups_per_step=trainer.tasks_per_step,
                max_retries=rollout.max_retries,
                seed=self._config.run.seed,
                max_staleness=rollout.max_staleness,
                oversample=rollout.oversample,
                overdue_factor=rollout.overdue_factor,
                overdue_min_s=rollout.overdue_min_s,
                early_close_share=rollout.early_close_share,
                refill=rollout.refill,
            ),
            label=_LABEL,
            version=version,
            batches=steps,
            pending=pending,
            spare=spare,
            first_number=self._first_number,
            learns=self._learns,
        )
        return self._scheduler

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        scheduler = self._scheduler
        pending = self._pending if scheduler is None else scheduler.pending()
        return {
            "sizes": _sizes(self._config),
            "cursor": self._cursor.state(),
            "first_number": self._first_number if scheduler is None else scheduler.first_number,
            "pending": [asdict(one) for one in pending],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `state`; before `begin`."""
        self._cursor.restore(state["cursor"])
        self._first_number = state["first_number"]
        self._pending = pending_groups(state, self._config)


def pending_groups(state: dict[str, Any], config: Config) -> list[Pending]:
    """The groups in flight that a checkpoint's `state` holds.

    Begun anew where groups or batches have another size now: what had ended might not fit into those, or be too old.
    """
    if state.get("sizes") != _sizes(config):
        return [Pending(p["number"], p["task_id"], ()) for p in state["pending"]]
    return [Pending(**p) for p in state["pending"]]


def _sizes(config: Config) -> list[int]:
    return [config.rollout.group_size, config.trainer.tasks_per_step, config.rollout.max_staleness]


def ended_episodes(groups: Iterable[Pending]) -> set[str]:
    """Ids of the episodes that need not be run again."""
    return {episode_id for group in groups for episode_id in group.ended}
