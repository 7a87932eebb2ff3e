"""The end of a run: what happened, whether all of it really happened, and the table that says so."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_serializer
from rich.console import Console
from rich.table import Table

from arpo.config.model import Config
from arpo.evaluation.report import in_words
from arpo.evaluation.result import EvaluationResult
from arpo.trainer.state import Progress, WarmStart
from arpo.trainer.version import CodeVersion

_STEPS_SHOWN = 8


class Summary(BaseModel):
    """`summary.json`. `missing` lists the stages that did not happen; a run with any is not a success.

    state: `finished` when the command ran to its end, whatever is missing; `stopped` by a signal; `failed` with an error.
    reason: what stopped it. peak_rss_gib: the most memory that the driver has had, in all of the run's processes that
    finished a step. seconds: of the last of them. attempts: processes that worked on the run.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    state: Literal["finished", "stopped", "failed"]
    reason: str | None
    version: CodeVersion
    provider: str
    steps: int
    policy_version: int
    optimizer_steps: int
    warm_start: WarmStart | None
    before: EvaluationResult | None
    after: EvaluationResult | None
    replayed: int
    per_step: list[dict[str, float]]
    faults: dict[str, int]
    env_server_restarts: int
    engine_restarts: int
    learner_restarts: int
    attempts: int
    checkpoint: str | None
    best_checkpoint: str | None
    damaged_checkpoints: int
    config_changes: list[str]
    version_changes: list[str]
    peak_rss_gib: float
    seconds: float
    missing: list[str]

    @field_serializer("before", "after")
    def _with_statistics(self, result: EvaluationResult | None) -> dict[str, Any] | None:
        """Success, intervals and pass@k stand beside the scores that they follow from."""
        return result.record() if result is not None else None


def missing_stages(
    config: Config, progress: Progress, after: EvaluationResult | None, checkpoint_step: int | None
) -> list[str]:
    """The stages that the configuration asks for and that did not happen.

    checkpoint_step: of the newest complete checkpoint.
    """
    warm, rows, section = progress.warm_start, progress.per_step, config.trainer
    imitated = warm is not None and (
        warm.steps > 0 or warm.probability_before >= config.imitation.target_prob
    )
    sampled_successes = config.replay.rule != "off" and progress.successes > 0
    happened = {
        "imitation: no demonstration was imitated": not config.imitation.enabled or imitated,
        "evaluation before training: no valid episode": not section.eval_before or _valid(progress.before),
        "evaluation after training: no valid episode": not section.eval_after or _valid(after),
        f"training: {progress.step} of {section.max_steps} steps": progress.step >= section.max_steps,
        **{f"step {step}: no optimizer step": False for step in progress.idle_steps},
        "replay: no success was stored": not sampled_successes or rows[-1]["replay/size"] > 0,
        f"checkpoint: none of step {progress.step}": checkpoint_step == progress.step,
    }
    return [stage for stage, did in happened.items() if not did]


def _valid(result: EvaluationResult | None) -> bool:
    return result is not None and result.episodes > 0


def print_summary(summary: Summary, console: Console) -> None:
    """The table a person reads at the end. console: without markup, as paths may hold brackets."""
    table = Table(title=f"ARPO run on {summary.provider} desktops", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if warm := summary.warm_start:
        source = f"from {warm.dataset}" if warm.dataset else "recorded, each scored 1.0"
        table.add_row("demonstrations", f"{warm.demonstrations} {source}")
        table.add_row(
            "imitation",
            f"{warm.steps} steps: a demonstration is sampled whole with probability "
            f"{warm.probability_before:.2g} → {warm.probability_after:.2g}",
        )
    table.add_row("success before", _success(summary.before))
    table.add_row("success after", _success(summary.after))
    if rows := summary.per_step:
        table.add_row("ARPO steps", f"{summary.steps}  (policy version {summary.policy_version})")
        table.add_row("mean score", _latest(rows, "rollout/score"))
        table.add_row("mean reward", _latest(rows, "rollout/reward"))
        table.add_row("seconds a step", f"{fmean(row['seconds/step'] for row in rows):.1f}")
    table.add_row("replayed", str(summary.replayed))
    faults = ", ".join(f"{code} {count}" for code, count in sorted(summary.faults.items()))
    table.add_row("environment faults", faults or "0")
    if summary.engine_restarts or summary.learner_restarts:
        lost = f"engines {summary.engine_restarts}, learner {summary.learner_restarts}"
        table.add_row("started again", lost)
    if summary.attempts > 1:
        table.add_row("attempts", str(summary.attempts))
    table.add_row("checkpoint", summary.checkpoint or "–")
    if summary.best_checkpoint not in (None, summary.checkpoint):
        table.add_row("best checkpoint", summary.best_checkpoint)
    if summary.damaged_checkpoints:
        table.add_row("damaged checkpoints", str(summary.damaged_checkpoints))
    table.add_row("driver memory", f"{summary.peak_rss_gib:.1f} GiB at most")
    table.add_row("run directory", summary.run)
    table.add_row("time", f"{summary.seconds:.0f} s")
    console.print(table)
    for stage in summary.missing:
        console.print(f"did not happen: {stage}", style="red", soft_wrap=True)


def _success(result: EvaluationResult | None) -> str:
    return "–" if result is None or result.success is None else in_words(result)


def _latest(rows: list[dict[str, float]], key: str) -> str:
    """The values of the last steps."""
    shown = [f"{row[key]:.2f}" for row in rows[-_STEPS_SHOWN:]]
    return "  ".join([*(["…"] if len(rows) > len(shown) else []), *shown])
