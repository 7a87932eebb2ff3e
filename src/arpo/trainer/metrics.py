"""What one training step leaves in `metrics.jsonl`, and what of it a person should be told. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from arpo.config.model import Config
from arpo.evaluation.result import EvaluationResult
from arpo.rollout.groups import Batch
from arpo.rollout.usage import Utilisation
from arpo.trainer.state import Progress
from arpo.trajectory import GroupMember


def step_metrics(
    config: Config,
    progress: Progress,
    batch: Batch,
    replay: Mapping[str, float],
    learned: Mapping[str, float],
    seconds: Mapping[str, float],
    utilisation: Utilisation,
    rss_gib: float,
) -> dict[str, float]:
    """The row of the step that `progress` has just finished. seconds: by part of it. utilisation: since the last one.

    rss_gib: of the driver.
    """
    groups = batch.groups
    valid = [t for group in groups for t in group.trajectories]
    # learned from by the version before the one that the step made
    ages = [progress.policy_version - 1 - t.policy_version for t in valid]
    return {
        "step": progress.step,
        "policy_version": progress.policy_version,
        "rollout/valid": len(valid),
        "rollout/successes": sum(t.succeeded(config.replay.success_above) for t in valid),
        "rollout/score": fmean(t.score or 0.0 for t in valid),
        "rollout/reward": fmean(t.reward(config.learner.format_coef) for t in valid),
        "rollout/retries": sum(group.retries for group in groups),
        "rollout/lost": sum(len(group.lost) for group in groups),
        "rollout/spare_groups": len(batch.spare),
        "rollout/turns": fmean(len(t.turns) for t in valid),
        "rollout/format_errors": sum(t.format < 0 for t in valid),
        "rollout/staleness_mean": fmean(ages),
        "rollout/staleness_max": max(ages),
        "rollout/env_utilisation": utilisation.desktops,
        "rollout/engine_utilisation": utilisation.engine,
        "rollout/engine_requests": utilisation.requests,
        **{f"replay/{key}": value for key, value in replay.items()},
        "checkpoint/damaged": progress.damaged_checkpoints,
        "driver/rss_gib": rss_gib,
        **learned,
        **{f"seconds/{key}": value for key, value in seconds.items()},
        "seconds/step": sum(seconds.values()),
    }


def evaluation_metrics(result: EvaluationResult) -> dict[str, float]:
    """What trackers are told of an evaluation; nothing of one without a valid episode but that."""
    success = {} if result.success is None else {"evaluation/success": result.success}
    domains = {
        f"evaluation/success/{name}": found.success.value
        for name, found in result.by_domain().items()
        if found.success is not None
    }
    lost = sum(task.lost for task in result.tasks)
    return {**success, **domains, "evaluation/episodes": result.episodes, "evaluation/lost": lost}


def batch_record(step: int, members: Sequence[Sequence[GroupMember]], batch: Batch) -> dict[str, Any]:
    """The line of `batches.jsonl` for a step: the episodes that it learned from, replayed ones apart, and those it did not.

    An episode's id names its group; a replayed one took the place of a failure.
    """
    return {
        "step": step,
        "groups": [
            {
                "episodes": [m.trajectory.episode_id for m in group if not m.replayed],
                "replayed": [m.trajectory.episode_id for m in group if m.replayed],
            }
            for group in members
        ],
        "spare": [t.episode_id for group in batch.spare for t in group.trajectories],
    }


def warnings(row: Mapping[str, float], config: Config) -> Iterator[str]:
    """What is wrong with a step although it went through, one line each."""
    if row["learner/engine_logprob_gap_alarm"]:
        yield (
            f"engine and learner disagree about what was sampled: log-probs differ by "
            f"{row['learner/engine_logprob_gap']:.3g} on average, more than "
            f"learner.logprob_gap_alarm={config.learner.logprob_gap_alarm:g}; are their weights, temperature and "
            f"engine.top_p={config.engine.top_p:g} the same?"
        )
    if skipped := row["learner/skipped_steps"]:
        yield f"{skipped:.0f} optimizer steps were skipped, because their gradient was not finite"
    if left_out := row["learner/rows_left_out"]:
        yield (
            f"{left_out:.0f} trajectories were not trained on: nothing of them fits into "
            f"learner.max_row_tokens={config.learner.max_row_tokens}, or nothing was sampled"
        )
