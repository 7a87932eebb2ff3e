"""Only tasks of both sides are compared, and the difference is theirs alone."""

from __future__ import annotations

import pytest

from arpo.evaluation.comparison import compare
from arpo.evaluation.report import changed_tasks_table, comparison_table, result_table
from arpo.evaluation.result import EvaluationResult, TaskResult


def evaluation(**scores: list[float]) -> EvaluationResult:
    tasks = [
        TaskResult(task_id=name, domain=name[0], scores=values, lost=2 - len(values))
        for name, values in scores.items()
    ]
    return EvaluationResult(policy_version=0, tasks=tasks, faults={})


def test_tasks_are_paired_and_those_of_one_side_are_listed() -> None:
    clean = evaluation(a1=[1.0, 1.0], a2=[1.0, 0.0], b1=[0.0], c1=[1.0])
    noisy = evaluation(a1=[1.0, 0.0], a2=[0.0, 0.0], b1=[1.0], b2=[1.0], c1=[])
    found = compare(clean, noisy)
    assert [(t.task_id, t.difference) for t in found.tasks] == [("a1", -0.5), ("a2", -0.5), ("b1", 1.0)]
    assert found.all is not None
    assert (found.all.first, found.all.second) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.all.difference.value == pytest.approx(0)
    assert found.domains["a"].difference.value == -0.5
    # c1 has no valid episode on the noisy side
    assert (found.only_first, found.only_second) == (["c/c1"], ["b/b2"])
    assert comparison_table(found, "clean", "noisy").row_count == 3
    changed = changed_tasks_table(found, "clean", "noisy")
    assert changed is not None
    assert changed.row_count == 3


def test_a_domain_that_fell_altogether_is_not_certain_to_the_last_point() -> None:
    names = [f"a{i}" for i in range(5)]
    fell = compare(evaluation(**{n: [1.0] for n in names}), evaluation(**{n: [0.0] for n in names}))
    assert fell.all is not None
    difference = fell.all.difference
    assert difference.value == -1
    assert -1 == difference.low < difference.high < 0


def test_nothing_in_common_is_no_comparison() -> None:
    found = compare(evaluation(a1=[1.0]), evaluation(b1=[1.0]))
    assert found.all is None
    assert found.record()["only_first"] == ["a/a1"]


def test_the_result_table_shows_the_powers_of_two_and_the_last_k() -> None:
    table = result_table(evaluation(a1=[1.0] * 6, a2=[0.0] * 6))
    heads = [str(column.header) for column in table.columns]
    assert [head for head in heads if "@" in head] == ["pass@1", "pass@2", "pass@4", "pass@6"]
    assert table.row_count == 2
