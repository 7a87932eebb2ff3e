"""Episodes of a run under a person's eye: progress while they run, faults kept as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arpo.rollout.evaluation import EvaluationResult, evaluate
from arpo.trainer.assembly import Assembly
from arpo.trainer.run_directory import RunDirectory
from arpo.trainer.state import Progress
from arpo.trajectory import Trajectory


async def run_evaluation(parts: Assembly, progress: Progress, label: str) -> EvaluationResult:
    """Evaluate the engine's policy; the result is kept under `evaluations/<label>.json`."""
    config = parts.config
    repeats = config.trainer.eval_repeats
    total = len(parts.eval_tasks) * repeats
    with watching(parts, progress, progress.step, f"evaluation {label}", total) as count:
        result = await evaluate(
            parts.collector(temperature=config.engine.eval_temperature, on_trajectory=count),
            parts.eval_tasks,
            label=f"eval-{label}",
            repeats=repeats,
            max_retries=config.rollout.max_retries,
            seed=config.run.seed,
        )
    parts.run.write(f"evaluations/{label}.json", {"step": progress.step, **result.record()})
    return result


@contextmanager
def watching(
    parts: Assembly, progress: Progress, step: int, title: str, total: int
) -> Iterator[Callable[[Trajectory], None]]:
    """Yields what to call with every episode that ended: shows how many did, and keeps the faults."""
    done = successes = 0

    def ended(trajectory: Trajectory) -> None:
        nonlocal done, successes
        keep_fault(parts.run, progress, step, trajectory)
        done += trajectory.valid
        successes += trajectory.succeeded(parts.config.replay.success_above)
        counter.update(done, f"{successes} successes")

    with parts.reporter.count(title, total) as counter:
        yield ended


def keep_fault(run: RunDirectory, progress: Progress, step: int, trajectory: Trajectory) -> None:
    """Keep and count the fault of an episode, if it had one."""
    if trajectory.problem is not None:
        run.fault(step, trajectory)
        progress.faults[trajectory.problem.code.value] += 1
