import pytest
import torch
from torch import nn

from arpo.learner.optimizer import AdamW


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in shapes.items()}


def give_gradients(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)


def test_in_fp32_it_is_torchs_adamw():
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), grad_clip=1e9)
    expected = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    for seed in range(5):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        optimizer.accumulate()
        assert optimizer.step().applied
        expected.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_warm_up_starts_above_zero_and_ends_at_the_peak():
    params = parameters()
    optimizer = AdamW(params, lr=0.4, warmup_steps=4)
    rates = []
    for seed in range(6):
        give_gradients(params, seed)
        optimizer.accumulate()
        rates.append(optimizer.step().lr)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_without_a_warm_up_the_first_step_has_the_peak_rate():
    assert AdamW(parameters(), lr=0.4).next_lr == 0.4


def test_gradients_are_clipped_to_a_global_norm():
    params = parameters()
    optimizer = AdamW(params, lr=0.1, grad_clip=0.5)
    give_gradients(params, 0, scale=100)
    norm = sum(float(p.grad.norm()) ** 2 for p in params.values()) ** 0.5
    optimizer.accumulate()
    result = optimizer.step()
    assert result.grad_norm == pytest.approx(norm)
    moments = [state["exp_avg"] for state in optimizer.state_dict()["adamw"].values()]
    # the first moment after one step is 0.1 times the clipped gradient
    assert sum(float(m.norm()) ** 2 for m in moments) ** 0.5 == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(poison):
    params = parameters()
    optimizer = AdamW(params, lr=0.1, warmup_steps=2)
    before = {name: p.detach().clone() for name, p in params.items()}
    give_gradients(params, 0)
    params["b"].grad[2] = poison
    optimizer.accumulate()
    result = optimizer.step()
    assert not result.applied
    assert optimizer.skipped == 1
    assert all(torch.equal(before[name], p) for name, p in params.items())
    # the bad gradient is gone, and neither moments nor warm-up have moved
    clean = parameters()
    other = AdamW(clean, lr=0.1, warmup_steps=2)
    for p, o in ((params, optimizer), (clean, other)):
        give_gradients(p, 1)
        o.accumulate()
        assert o.step().lr == pytest.approx(0.05)
    assert all(torch.equal(params[name], clean[name]) for name in params)


def test_bfloat16_gradients_are_summed_in_fp32():
    params = {"w": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    optimizer = AdamW(params, lr=0.1, grad_clip=1e9)
    # 1 + 1/512 four times: bfloat16 has eight bits, so adding in it would lose every 1/512
    for part in (1.0, 1 / 512, 1 / 512, 1 / 512, 1 / 512):
        params["w"].grad = torch.tensor([part], dtype=torch.bfloat16)
        optimizer.accumulate()
    assert optimizer.step().grad_norm == pytest.approx(1 + 4 / 512, rel=1e-6)


def test_small_steps_add_up_in_bfloat16():
    params = {"w": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    optimizer = AdamW(params, lr=1e-4)
    for _ in range(100):
        params["w"].grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.accumulate()
        optimizer.step()
    # one update of 1e-4 is far below bfloat16's spacing of 0.004 there
    assert params["w"].item() == pytest.approx(0.99, abs=0.004)
    lost = optimizer.state_dict()["adamw"]["w"]["lost"]
    assert params["w"].item() + lost.item() == pytest.approx(0.99, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_equal(dtype):
    params = parameters(dtype)
    optimizer = AdamW(params, lr=0.1, warmup_steps=5)

    def steps(params, optimizer, seeds):
        for seed in seeds:
            give_gradients(params, seed)
            optimizer.accumulate()
            optimizer.step()

    steps(params, optimizer, range(3))
    state = torch.utils._pytree.tree_map(torch.clone, optimizer.state_dict())
    other = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    restored = AdamW(other, lr=0.1, warmup_steps=5)
    torch.utils._pytree.tree_map(lambda new, old: new.copy_(old), restored.state_dict(), state)
    steps(params, optimizer, range(3, 6))
    steps(other, restored, range(3, 6))
    assert all(torch.equal(params[name], other[name]) for name in params)


def test_a_step_without_gradients_is_no_step():
    optimizer = AdamW(parameters(), lr=0.1)
    result = optimizer.step()
    assert not result.applied
    assert optimizer.skipped == 0
