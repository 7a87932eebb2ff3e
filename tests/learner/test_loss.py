import math

import pytest
import torch
from reference import Rule, token_loss

from arpo.config.sections import LearnerSection
from arpo.learner.loss import importance_weight, kl_divergence, policy_loss, shares

# below, at, between and above the clips, and beyond the dual clip
RATIOS = [0.1, 0.79, 0.8, 0.81, 1.0, 1.29, 1.3, 1.31, 2.9, 3.1, 8.0]
ADVANTAGES = [-1.7, -0.4, 0.0, 0.4, 1.7]


def compute(ratios, advantages, weights=None, total=None, **section):
    log_pi_old = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    log_pi = (log_pi_old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    result = policy_loss(
        log_pi,
        log_pi_old,
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(weights or [1.0] * len(ratios), dtype=torch.float64),
        torch.full((len(ratios),), 1 / (total or len(ratios)), dtype=torch.float64),
        section=LearnerSection(**section),
    )
    result.loss.backward()
    return result, log_pi.grad


@pytest.mark.parametrize("dual_clip", [3.0, None])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_value_and_slope_of_a_token_are_those_of_the_written_out_formula(ratio, advantage, dual_clip):
    result, gradient = compute([ratio], [advantage], dual_clip=dual_clip)
    rule = Rule(dual_clip=dual_clip)
    assert float(result.loss.detach()) == pytest.approx(token_loss(ratio, advantage, rule), abs=1e-12)
    if ratio in (0.8, 1.3):  # a kink: either slope is right
        return
    step = 1e-6
    above, below = (token_loss(ratio * math.exp(s), advantage, rule) for s in (step, -step))
    assert float(gradient[0]) == pytest.approx((above - below) / (2 * step), abs=1e-6)


def test_the_sum_is_divided_by_the_tokens_of_the_whole_batch():
    pairs = [(ratio, advantage) for ratio in RATIOS for advantage in ADVANTAGES]
    ratios, advantages = [p[0] for p in pairs], [p[1] for p in pairs]
    whole, whole_gradient = compute(ratios, advantages)
    first, first_gradient = compute(ratios[:7], advantages[:7], total=len(pairs))
    rest, rest_gradient = compute(ratios[7:], advantages[7:], total=len(pairs))
    torch.testing.assert_close(first.loss + rest.loss, whole.loss)
    torch.testing.assert_close(torch.cat([first_gradient, rest_gradient]), whole_gradient)


def test_weights_scale_value_and_gradient():
    ratios, advantages = [0.9, 1.1, 1.2], [1.0, -1.0, 0.5]
    plain = [compute([r], [a], total=3) for r, a in zip(ratios, advantages, strict=True)]
    weighted, gradient = compute(ratios, advantages, weights=[0.25, 2.0, 0.0])
    expected = 0.25 * plain[0][0].loss + 2.0 * plain[1][0].loss
    torch.testing.assert_close(weighted.loss, expected)
    torch.testing.assert_close(
        gradient, torch.stack([0.25 * plain[0][1][0], 2 * plain[1][1][0], torch.tensor(0.0).double()])
    )


def test_the_metrics_name_the_clip_that_bites():
    result, _ = compute([0.5, 1.5, 0.5, 1.5, 4.0, 1.0], [1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    assert result.tokens["clip_low"].tolist() == [0, 0, 1, 0, 0, 0]
    assert result.tokens["clip_high"].tolist() == [0, 1, 0, 0, 0, 0]
    assert result.tokens["dual_clip"].tolist() == [0, 0, 0, 0, 1, 0]
    assert result.tokens["kl"][-1] == 0
    assert (result.tokens["kl"] >= 0).all()


def test_the_importance_weight_is_truncated_and_carries_no_gradient():
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weight = importance_weight(old, torch.tensor([-1.0, -0.5, -4.0]), cap=2.0)
    assert weight.tolist() == pytest.approx([1.0, math.exp(-0.5), 2.0])
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("mean", "expected"),
    [("token", [1 / 8] * 4), ("sequence", [1 / 6, 1 / 9, 1 / 6, 1 / 9]), ("constant", [1 / 30] * 4)],
)
def test_shares_of_a_token_by_mean(mean, expected):
    counts = [2, 3, 0, 3]
    got = shares(counts, LearnerSection(mean=mean, mean_constant=10))
    filled = [(g, e) for g, e, count in zip(got, expected, counts, strict=True) if count]
    assert [g for g, _ in filled] == pytest.approx([e for _, e in filled])
    if mean != "constant":
        assert sum(c * g for c, g in zip(counts, got, strict=True)) == pytest.approx(1.0)


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_estimates_of_the_divergence(estimator, unbiased):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = float((p * (p / q).log()).sum())
    log_pi = p.log().requires_grad_()
    value = (p * kl_divergence(log_pi, q.log(), estimator)).sum()
    assert float(value.detach()) == pytest.approx(exact, rel=1e-12 if unbiased else 0.1)
    assert float(kl_divergence(q.log(), q.log(), estimator).abs().sum()) == 0
    with pytest.raises(ValueError, match="no estimator"):
        kl_divergence(log_pi, q.log(), "k4")
