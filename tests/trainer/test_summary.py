"""A run is a success only if every stage that was asked for really happened."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from arpo.config.load import load_config
from arpo.evaluation.result import EvaluationResult, TaskResult
from arpo.trainer.state import Progress, WarmStart
from arpo.trainer.summary import Summary, missing_stages, print_summary
from arpo.trainer.version import CodeVersion

CONFIG = ("imitation.enabled=true", "trainer.max_steps=2")


def evaluation(*scores: float, lost: int = 0) -> EvaluationResult:
    result = TaskResult(task_id="t", domain="d", scores=list(scores), lost=lost)
    return EvaluationResult(policy_version=1, tasks=[result], faults={})


def row(step: int, **changes: float) -> dict[str, float]:
    return {
        "step": step,
        "rollout/successes": 1,
        "rollout/score": 0.25,
        "rollout/reward": 0.125,
        "replay/size": 1,
        "replay/injected": 1,
        "learner/optimizer_steps": 1,
        "seconds/step": 3.0,
    } | changes


def warm(**changes: Any) -> WarmStart:
    whole = {
        "demonstrations": 4,
        "steps": 9,
        "probability_before": 1e-9,
        "probability_after": 0.5,
        "seconds": 1,
    }
    return WarmStart(**whole | changes)


def missing(
    *overrides: str, after: EvaluationResult | None = None, saved: int = 2, **changes: Any
) -> list[str]:
    whole = {"warm_start": warm(), "before": evaluation(0.0)}
    rows = changes.pop("rows", [row(1), row(2)])
    progress = Progress(**whole | changes)
    for one in rows:
        progress.step += 1
        progress.add(one)
    config = load_config(None, [*CONFIG, *overrides])
    return missing_stages(config, progress, after or evaluation(1.0), saved)


def test_nothing_is_missing_of_a_whole_run_nor_what_was_not_asked_for() -> None:
    assert missing() == []
    assert missing(warm_start=warm(steps=0, probability_before=1.0)) == []
    off = ("imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false")
    assert missing(*off, warm_start=None, before=None, after=evaluation()) == []
    failures = [row(1, **{"rollout/successes": 0, "replay/size": 0})] * 2
    assert missing(rows=failures) == []
    assert missing("replay.rule=off", rows=[row(1, **{"replay/size": 0})] * 2) == []


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"warm_start": None}, "imitation"),
        ({"warm_start": warm(steps=0)}, "imitation"),
        ({"before": None}, "evaluation before"),
        ({"before": evaluation(lost=3)}, "evaluation before"),
        ({"after": evaluation(lost=3)}, "evaluation after"),
        ({"rows": [row(1)], "saved": 1}, "training: 1 of 2 steps"),
        ({"rows": [row(1), row(2, **{"learner/optimizer_steps": 0})]}, "step 2: no optimizer step"),
        ({"rows": [row(1), row(2, **{"replay/size": 0})]}, "replay: no success was stored"),
        ({"saved": 1}, "checkpoint: none of step 2"),
        ({"saved": None}, "checkpoint: none of step 2"),
    ],
)
def test_a_stage_that_did_not_happen_is_named(changes, stage) -> None:
    (line,) = missing(**changes)
    assert line.startswith(stage)


def test_the_table_fits_80_columns_and_says_what_a_person_asks_first() -> None:
    summary = Summary(
        run="/somewhere/[deep]/" + 12 * "folder/" + "smoke",
        state="finished",
        reason=None,
        version=CodeVersion(arpo="1", git=None, python="3", packages={}, platform="p", gpus=[]),
        provider="xvfb",
        steps=30,
        policy_version=31,
        optimizer_steps=30,
        replayed=30,
        warm_start=warm(),
        before=evaluation(0.0, 1.0, lost=1),
        after=evaluation(1.0),
        per_step=[row(step, **{"rollout/score": step / 100}) for step in range(1, 31)],
        faults={"desktop_lost": 2, "reset_failed": 1},
        env_server_restarts=1,
        engine_restarts=2,
        learner_restarts=1,
        attempts=1,
        checkpoint="/somewhere/step-000030",
        best_checkpoint="/somewhere/step-000020",
        damaged_checkpoints=1,
        config_changes=["after step 3: learner.lr: 1e-06 → 2e-06"],
        version_changes=[],
        peak_rss_gib=1.25,
        seconds=61.7,
        missing=["checkpoint: none of step 30"],
    )
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=80, markup=False))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    flat = "".join(line.strip("│ ") for line in lines)
    for shown in (
        "50 % (95 %: 5 to 95 %), 2 episodes, 1 lost", "…  0.23", "0.29  0.30", "desktop_lost 2, reset_failed 1",
        "/somewhere/[deep]/folder", "did not happen: checkpoint: none of step 30", "62 s", "1.2 GiB at most",
        "best checkpoint", "step-000020", "damaged checkpoints",
    ):  # fmt: skip
        assert shown in flat, shown


def test_what_is_kept_of_a_long_run_is_bounded_and_its_counts_are_whole() -> None:
    progress = Progress()
    for step in range(1, 1001):
        progress.add(row(step, **{"learner/optimizer_steps": 0} if step == 7 else {}))
    assert len(progress.per_step) == 128
    assert progress.per_step[-1]["step"] == 1000
    assert (progress.optimizer_steps, progress.replayed, progress.successes) == (999, 1000, 1000)
    assert progress.idle_steps == [7]
