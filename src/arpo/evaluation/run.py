"""Runs the episodes that an evaluation still lacks: every task of a set, k times, faults apart from failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arpo.evaluation.record import EvaluationRecord
from arpo.evaluation.result import EvaluationResult
from arpo.rollout.collect import Collector
from arpo.rollout.groups import Begun
from arpo.rollout.rules import SchedulerRules
from arpo.rollout.scheduler import Scheduler
from arpo.tasks.model import Task
from arpo.trajectory import Trajectory


async def evaluate(
    collector: Collector, tasks: Sequence[Task], record: EvaluationRecord, *, max_retries: int, seed: int
) -> EvaluationResult:
    """Run them with the collector's engine and rules; each is recorded as it ends.

    tasks: those of the record. An episode's seed depends on the seed, the label, the task and the repeat alone, so an
    evaluation that was interrupted ends as one that was not.
    """
    if record.complete:
        return record.result()

    def keep(trajectory: Trajectory) -> None:
        record.append(trajectory)
        collector.on_trajectory(trajectory)

    # all groups are opened at the beginning: each with the episodes that it has
    groups = [
        Begun(number, task, valid)
        for number, (task, valid) in enumerate(zip(tasks, record.valid(), strict=True))
    ]
    rules = SchedulerRules(record.repeats, len(tasks), max_retries, seed, max_staleness=None)
    scheduler = Scheduler(iter(()), rules, label=record.label, batches=1, pending=groups)
    for_people = replace(collector.rules, keep_row=False)
    await replace(collector, rules=for_people, on_trajectory=keep).collect(scheduler)
    return record.result()
