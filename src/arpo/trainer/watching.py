"""Episodes of a run under a person's eye: progress while they run, faults kept as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from arpo.evaluation.identity import Identity
from arpo.evaluation.record import EvaluationRecord, OtherEvaluationError, open_record, remove_record
from arpo.evaluation.result import EvaluationResult
from arpo.evaluation.run import evaluate
from arpo.trainer.exported import export_episode
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.stage import Stage
from arpo.trainer.state import Progress
from arpo.trajectory import Trajectory


async def run_evaluation(parts: Stage, progress: Progress, label: str) -> EvaluationResult:
    """Evaluate the policy that is being trained; the result is kept under `evaluations/<label>.json`.

    An evaluation of the same policy that was interrupted is gone on with; one of another policy or other settings is made
    anew.
    """
    version = parts.engine.policy_version
    identity = Identity.of(
        parts.config,
        parts.eval_tasks,
        label=label,
        step=progress.step,
        policy=f"policy version {version} of this run",
        policy_version=version,
    )
    folder, repeats = parts.run.evaluation_record(label), parts.config.trainer.eval_repeats
    try:
        record = open_record(folder, identity, repeats, parts.run.screenshots)
    except OtherEvaluationError:
        remove_record(folder)
        record = open_record(folder, identity, repeats, parts.run.screenshots)
    return await go_on(parts, progress, record)


async def go_on(parts: Stage, progress: Progress, record: EvaluationRecord) -> EvaluationResult:
    """Run what an evaluation still lacks, and keep its result."""
    config, label = parts.config, record.identity.label
    total = len(parts.eval_tasks) * record.repeats
    with watching(
        parts, progress, progress.step, f"evaluation {label}", total, already=record.episodes
    ) as count:
        result = await evaluate(
            parts.collector(temperature=config.engine.eval_temperature, on_trajectory=count),
            parts.eval_tasks,
            record,
            max_retries=config.rollout.max_retries,
            seed=config.run.seed,
        )
    write_result(parts.run, record)
    return result


def write_result(run: RunDirectory, record: EvaluationRecord) -> None:
    """Write an evaluation's result document."""
    identity = record.identity
    about = {"step": identity.step, "policy": identity.policy, "repeats": record.repeats}
    document = {**about, **record.result().record(), "settings": identity.settings}
    run.write(f"evaluations/{identity.label}.json", document)


@contextmanager
def watching(
    parts: Stage,
    progress: Progress,
    step: int,
    title: str,
    total: int,
    *,
    already: Sequence[Trajectory] = (),
) -> Iterator[Callable[[Trajectory], None]]:
    """Yields what to call with every episode that ended: shows how many did, and keeps the faults.

    already: episodes that an earlier process saw end.
    """
    done = successes = 0

    def counted(trajectory: Trajectory) -> None:
        nonlocal done, successes
        count_fault(progress, trajectory)
        done += trajectory.valid
        successes += trajectory.succeeded(parts.config.replay.success_above)
        counter.update(done, f"{successes} successes")

    def ended(trajectory: Trajectory) -> None:
        parts.run.fault(step, trajectory)
        export_episode(trajectory, parts.config.replay.success_above)
        counted(trajectory)

    with parts.reporter.count(title, total) as counter:
        for trajectory in tuple(already):
            counted(trajectory)
        yield ended


def keep_fault(run: RunDirectory, progress: Progress, step: int, trajectory: Trajectory) -> None:
    """Keep and count the fault of an episode, if it had one."""
    run.fault(step, trajectory)
    count_fault(progress, trajectory)


def count_fault(progress: Progress, trajectory: Trajectory) -> None:
    """Count the fault of an episode, if it had one."""
    if trajectory.problem is not None:
        progress.faults[trajectory.problem.code.value] += 1
