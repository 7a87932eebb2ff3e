"""pass@k is what counting all choices gives; an interval holds the truth about as often as it says."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.evaluation.result import EvaluationResult, Statistics, TaskResult
from arpo.evaluation.statistics import mean_difference, mean_over_tasks, pass_at_k

outcomes = st.lists(st.booleans(), min_size=1, max_size=9)
fractions = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(outcomes, st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_success(scores, data) -> None:
    k = data.draw(st.integers(1, len(scores)))
    counted = fmean(any(choice) for choice in combinations(scores, k))
    assert pass_at_k(len(scores), sum(scores), k) == pytest.approx(counted)


@pytest.mark.parametrize(("episodes", "successes", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_needs_k_episodes(episodes, successes, k) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(episodes, successes, k)


@given(fractions, st.integers(1, 8))
def test_an_interval_holds_its_value_and_stays_between_0_and_1(values, repeats) -> None:
    found = mean_over_tasks(values, repeats * len(values))
    assert found is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0, "nothing is ever certain"


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_a_difference_turned_round_has_its_interval_turned_round(values) -> None:
    found, turned = mean_difference(values), mean_difference([-value for value in values])
    assert found is not None
    assert turned is not None
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert -1 <= found.low < found.high <= 1


def test_the_interval_of_tasks_run_once_is_wilsons() -> None:
    # 95 % interval of 27 successes in 99 (n - 1, as the variance is the sample's), by hand
    found = mean_over_tasks([1.0] * 27 + [0.0] * 73, 100)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.192, 0.364), abs=0.002)
    nothing = mean_over_tasks([0.0] * 4, 16)
    assert nothing is not None
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 0.490), abs=0.001)
    assert mean_over_tasks([], 0) is None
    assert mean_difference([]) is None


def test_repeats_of_few_tasks_do_not_pass_for_many_tasks() -> None:
    apart = [1.0, 0.0] * 5  # every repeat of a task came out alike
    once, often = mean_over_tasks(apart, 10), mean_over_tasks(apart, 1000)
    assert once == often


@pytest.mark.parametrize(("tasks", "repeats"), [(5, 1), (5, 4), (20, 4), (60, 1)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(tasks, repeats) -> None:
    rng = random.Random(f"{tasks}/{repeats}")
    a, b, runs = 0.6, 1.2, 400  # tasks differ in how hard they are
    held = held_difference = 0
    for _ in range(runs):
        chances = [rng.betavariate(a, b) for _ in range(tasks)]
        clean = [fmean(rng.random() < p for _ in range(repeats)) for p in chances]
        noisy = [fmean(rng.random() < p / 2 for _ in range(repeats)) for p in chances]
        found = mean_over_tasks(clean, tasks * repeats)
        lost = mean_difference([there - here for here, there in zip(clean, noisy, strict=True)])
        assert found is not None
        assert lost is not None
        held += found.low <= a / (a + b) <= found.high
        held_difference += lost.low <= -a / (a + b) / 2 <= lost.high
    # 95 % ± 3 standard errors of 400 draws; wider is no error, so there is no upper bound
    assert held / runs > 0.917
    assert held_difference / runs > 0.917


def task(name: str, *scores: float, lost: int = 0, domain: str = "d") -> TaskResult:
    return TaskResult(task_id=name, domain=domain, scores=list(scores), lost=lost)


def test_every_task_counts_the_same_however_many_episodes_it_lost() -> None:
    result = EvaluationResult(
        policy_version=3,
        tasks=[task("a", 1.0, lost=1), task("b", 0.0, 0.5), task("c", lost=2, domain="e")],
        faults={"desktop_lost": 3},
    )
    assert result.success == pytest.approx((1 + 0.25) / 2)
    found = result.statistics
    assert found.success is not None
    assert (found.success.value, found.success.tasks, found.episodes, found.lost) == (0.625, 2, 3, 3)
    # partial credit is no solution; pass@2 is only of the task that has two episodes
    assert {k: (e.value, e.tasks) for k, e in found.pass_at.items()} == {1: (0.5, 2), 2: (0.0, 1)}
    assert result.by_domain()["e"] == Statistics(None, {}, episodes=0, lost=2)
    assert EvaluationResult.of_record(result.record()) == result


@settings(max_examples=30)
@given(st.lists(outcomes, min_size=1, max_size=5))
def test_pass_at_k_never_falls_with_k(scores) -> None:
    same = min(map(len, scores))
    found = Statistics.of([task(str(i), *map(float, one[:same])) for i, one in enumerate(scores)])
    values = [found.pass_at[k].value for k in sorted(found.pass_at)]
    assert values == sorted(values)
    assert found.success is not None
    assert values[0] == pytest.approx(found.success.value)
