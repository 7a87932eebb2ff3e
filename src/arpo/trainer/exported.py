"""What the trainer exports of its run: figures that it has anyhow, under the names of `arpo.telemetry.names`."""

from __future__ import annotations

from collections.abc import Mapping

from arpo.telemetry import metrics, names
from arpo.trajectory import Trajectory

_GAUGES = {
    names.STEP_NUMBER: "step",
    names.MEAN_SCORE: "rollout/score",
    names.ENV_UTILISATION: "rollout/env_utilisation",
    names.ENGINE_UTILISATION: "rollout/engine_utilisation",
}


def export_episode(trajectory: Trajectory, success_above: float) -> None:
    """An episode ended."""
    problem = trajectory.problem
    if problem is not None:
        metrics.record(
            names.FAULTS, 1, {names.FAULT_CODE: problem.code.value, names.FAULT: problem.fault.value}
        )
    result = "failure" if trajectory.valid else "invalid"
    if trajectory.succeeded(success_above):
        result = "success"
    metrics.record(names.EPISODES_ENDED, 1, {names.RESULT: result})


def export_step(row: Mapping[str, float]) -> None:
    """A training step ended. row: its line of `metrics.jsonl`."""
    for gauge, key in _GAUGES.items():
        metrics.record(gauge, row[key])
    metrics.record(names.SUCCESS, row["rollout/successes"] / row["rollout/valid"])
    for statistic in ("mean", "max"):
        metrics.record(names.STALENESS, row[f"rollout/staleness_{statistic}"], {names.STATISTIC: statistic})
    for part in ("rollout", "learn"):
        metrics.record(names.STEP_SECONDS, row[f"seconds/{part}"], {names.PART: part})
    metrics.record(names.REPLAYED, row["replay/injected"])
