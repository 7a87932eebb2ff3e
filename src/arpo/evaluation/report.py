"""Evaluations and comparisons as tables for people."""

from __future__ import annotations

from rich.table import Table

from arpo.evaluation.comparison import Comparison, Means
from arpo.evaluation.result import EvaluationResult, Statistics
from arpo.evaluation.statistics import Estimate

_TASKS_SHOWN = 20


def result_table(result: EvaluationResult) -> Table:
    """One row a domain, and one for all."""
    everything = result.statistics
    shown = _shown_ks(max(everything.pass_at, default=1))
    table = Table("domain", "success", "95 %", *(f"pass@{k}" for k in shown), "tasks", "episodes", "lost")
    for domain, statistics in result.by_domain().items():
        table.add_row(domain, *_cells(statistics, shown))
    table.add_row("all", *_cells(everything, shown), style="bold")
    return table


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """One row a domain, and one for all. first, second: names of the evaluations."""
    table = Table("domain", first, second, "difference", "95 %", "tasks")
    for domain, means in comparison.domains.items():
        table.add_row(domain, *_means(means))
    if comparison.all:
        table.add_row("all", *_means(comparison.all), style="bold")
    return table


def changed_tasks_table(comparison: Comparison, first: str, second: str) -> Table | None:
    """The tasks that changed most; None when none did."""
    changed = sorted(
        (task for task in comparison.tasks if task.difference),
        key=lambda task: (-abs(task.difference), task.task_id),
    )
    if not changed:
        return None
    table = Table("task", first, second, "difference")
    for task in changed[:_TASKS_SHOWN]:
        table.add_row(
            f"{task.domain}/{task.task_id}",
            _percent(task.first),
            _percent(task.second),
            _signed(task.difference),
        )
    if (more := len(changed) - _TASKS_SHOWN) > 0:
        table.add_row(f"and {more} more (--json lists all)", "", "", "")
    return table


def in_words(result: EvaluationResult) -> str:
    """`50 % (95 %: 15 to 85 %), 4 episodes, 1 lost`."""
    statistics = result.statistics
    if statistics.success is None:
        return "no valid episode"
    success = statistics.success
    lost = f", {statistics.lost} lost" if statistics.lost else ""
    return f"{_percent(success.value)} (95 %: {_interval(success)}), {statistics.episodes} episodes{lost}"


def _cells(statistics: Statistics, ks: list[int]) -> list[str]:
    success, pass_at = statistics.success, statistics.pass_at
    return [
        _percent(success.value) if success else "–",
        _interval(success) if success else "–",
        *(_percent(pass_at[k].value) if k in pass_at else "–" for k in ks),
        str(success.tasks if success else 0),
        str(statistics.episodes),
        str(statistics.lost or "–"),
    ]


def _means(means: Means) -> list[str]:
    difference = means.difference
    return [
        _percent(means.first),
        _percent(means.second),
        _signed(difference.value),
        f"{_signed(difference.low)} to {_signed(difference.high)}",
        str(difference.tasks),
    ]


def _shown_ks(most: int) -> list[int]:
    """1, 2, 4, … and the most itself."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _signed(value: float) -> str:
    """Percentage points."""
    return f"{100 * value:+.0f}"


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.0f} to {100 * estimate.high:.0f} %"
