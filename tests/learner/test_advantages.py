import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arpo.learner.advantages import advantages, group_advantage

REWARDS = st.lists(st.floats(-0.5, 1.0), min_size=2, max_size=16)


@given(REWARDS)
def test_it_is_the_published_formula(rewards):
    if min(rewards) == max(rewards):
        return
    r = torch.tensor(rewards, dtype=torch.float64)
    expected = (r - r.mean()) / (r.std() + 1e-6)  # torch.std divides by n - 1
    assert group_advantage(rewards) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)


@given(st.floats(-0.5, 1.0), st.integers(1, 20))
def test_equal_rewards_have_advantages_of_exactly_zero(reward, size):
    assert group_advantage([reward] * size) == [0.0] * size


@given(REWARDS)
def test_advantages_sum_to_zero_and_keep_the_order(rewards):
    values = group_advantage(rewards)
    assert math.isclose(sum(values), 0, abs_tol=1e-6)
    order = sorted(range(len(rewards)), key=lambda i: rewards[i])
    assert all(values[a] <= values[b] for a, b in pairwise(order))


def test_groups_of_one_and_none_have_no_advantage():
    assert group_advantage([1.0]) == [0.0]
    assert group_advantage([]) == []


@given(st.lists(REWARDS, min_size=1, max_size=5))
def test_rloo_is_dr_grpo_scaled_and_neither_looks_beyond_the_group(groups):
    rloo, centred = advantages(groups, "rloo"), advantages(groups, "dr_grpo")
    for group, ours, theirs in zip(groups, rloo, centred, strict=True):
        n = len(group)
        assert ours == pytest.approx([n / (n - 1) * value for value in theirs], abs=1e-9)
        assert advantages([group], "rloo") == [ours]


@given(st.lists(REWARDS, min_size=1, max_size=5))
def test_reinforce_plus_plus_is_standardised_over_the_batch(groups):
    flat = [value for group in advantages(groups, "reinforce++") for value in group]
    assert flat == group_advantage([reward for group in groups for reward in group])
    baseline = [value for group in advantages(groups, "reinforce++-baseline") for value in group]
    centred = [value for group in advantages(groups, "dr_grpo") for value in group]
    assert baseline == group_advantage(centred)
