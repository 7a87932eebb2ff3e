"""Advantages: from the rewards of a batch of groups to one number a trajectory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Literal

EPSILON = 1e-6

Estimator = Literal["grpo", "rloo", "reinforce++", "reinforce++-baseline", "dr_grpo"]
"""Where an advantage's baseline comes from; see the functions below."""


def group_advantage(rewards: Sequence[float]) -> list[float]:
    """GRPO's advantage of each member: (r − mean) / (std + 1e-6) (arXiv 2402.03300, section 4.1.2).

    std divides by n − 1, as verl, TRL and the published ARPO code do. A group whose rewards are all equal, a
    group of one among them, tells nothing apart: its advantages are exactly 0.
    """
    return _standardised(rewards)


def leave_one_out_advantage(rewards: Sequence[float]) -> list[float]:
    """RLOO's advantage: r minus the mean of the other members (arXiv 2402.14740); 0 in a group of one."""
    if _all_equal(rewards):
        return [0.0] * len(rewards)
    total, others = math.fsum(rewards), len(rewards) - 1
    return [r - (total - r) / others for r in rewards]


def centred_advantage(rewards: Sequence[float]) -> list[float]:
    """Dr.GRPO's advantage: r − mean, without the division that favours easy and hard tasks (arXiv 2503.20783)."""
    if _all_equal(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def advantages(groups: Sequence[Sequence[float]], estimator: Estimator) -> list[list[float]]:
    """Advantages of every member of every group of a batch, in the groups' shape.

    `reinforce++` standardises the rewards over the whole batch, `reinforce++-baseline` what is left of them
    after each group's mean is taken off (arXiv 2501.03262); the others look at one group at a time.
    """
    match estimator:
        case "grpo":
            return [group_advantage(group) for group in groups]
        case "rloo":
            return [leave_one_out_advantage(group) for group in groups]
        case "dr_grpo":
            return [centred_advantage(group) for group in groups]
        case "reinforce++":
            values = [list(group) for group in groups]
        case "reinforce++-baseline":
            values = [centred_advantage(group) for group in groups]
    standardised = iter(_standardised(list(chain.from_iterable(values))))
    return [[next(standardised) for _ in group] for group in values]


def _standardised(values: Sequence[float]) -> list[float]:
    if _all_equal(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return [(v - mean) / (std + EPSILON) for v in values]


def _all_equal(values: Sequence[float]) -> bool:
    return not values or min(values) == max(values)
