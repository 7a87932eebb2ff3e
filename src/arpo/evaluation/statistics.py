"""How sure an evaluation is of its numbers.

Invariant: the sampling unit is the task. Episodes of one task resemble each other, so more repeats of few tasks never make
an interval as narrow as as many tasks would: an interval is about tasks like these, not about these tasks.

Every interval is a closed formula: the same scores give the same interval, without random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Estimate(BaseModel):
    """A mean over tasks with its 95 % confidence interval [low, high]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float
    tasks: int


def pass_at_k(episodes: int, successes: int, k: int) -> float:
    """The chance that at least one of k episodes of a task succeeds, estimated from n ≥ k episodes with c successes.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374, equation 1). Raises ValueError
    when there are fewer than k episodes.
    """
    if not 0 <= successes <= episodes or not 1 <= k <= episodes:
        raise ValueError(f"pass@{k} of {successes} successes in {episodes} episodes")
    return 1.0 - math.comb(episodes - successes, k) / math.comb(episodes, k)


def mean_over_tasks(values: Sequence[float], episodes: int) -> Estimate | None:
    """The mean of one value in [0, 1] for each of n tasks, and Wilson's interval for it; None without a task.

    episodes: on which all the values together rest, at least n.

    Wilson's score interval takes a number of independent observations. Here that is the effective one,
    n* = p(1 - p) / (s² / n) · (z / t)², with s² the variance between tasks and t Student's quantile for n - 1 degrees of
    freedom: repeats make it larger only as far as they make the tasks' means alike, and few tasks cannot show that they
    are. It is at least n - 1, what tasks that are run once and scored 0 or 1 would give, and at most `episodes`. This is
    the Wilson interval for clustered samples that Franco et al. 2019 (J. Survey Statistics and Methodology 7, 334-364)
    recommend, with Korn and Graubard's t. A bootstrap over tasks would say ±0 where all of a few tasks failed, and be too
    narrow for the few tasks that a domain has.
    """
    n = len(values)
    if n == 0:
        return None
    mean = min(1.0, max(0.0, fmean(values)))
    effective = float(n)
    if 0 < mean < 1 and n > 1:
        spread = variance(values) / n
        most = float(max(n, episodes))
        alike = mean * (1 - mean) / spread * (_Z / _student(n - 1)) ** 2 if spread > 0 else most
        effective = min(max(n - 1.0, alike), most)
    low, high = _wilson(mean, effective)
    return Estimate(value=mean, low=low, high=high, tasks=n)


def mean_difference(differences: Sequence[float]) -> Estimate | None:
    """The mean of one difference in [-1, 1] for each of n tasks that were run twice; None without a task.

    The interval is that of Agresti and Min 2005 (Statistics in Medicine 24, 729-740) for matched proportions: a normal
    interval after two imagined tasks, half of one better, half of one worse, one unchanged. For differences that are
    fractions it takes their squares as it takes counts. Unlike a bootstrap over the pairs it does not say ±0 where a few
    tasks all changed alike, or not at all.
    """
    n = len(differences)
    if n == 0:
        return None
    centre = sum(differences) / (n + 2)
    spread = (sum(d * d for d in differences) + 1) / (n + 2) - centre**2
    reach = _Z * math.sqrt(spread / (n + 2))
    return Estimate(
        value=fmean(differences), low=max(-1.0, centre - reach), high=min(1.0, centre + reach), tasks=n
    )


def _student(freedom: int) -> float:
    """Student's t for the confidence, by the first terms of its expansion (Abramowitz and Stegun 26.7.5): within 2 % from
    4 degrees of freedom on, and too small below.
    """
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson 1927 (J. American Statistical Association 22, 209-212), for n independent observations."""
    square = _Z**2 / n
    centre = (p + square / 2) / (1 + square)
    reach = _Z / (1 + square) * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))
