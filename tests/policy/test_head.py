import pytest
import torch

from arpo.policy.head import chunked_logprobs


def problem(tokens=13, hidden=6, vocabulary=17, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(tokens, hidden, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, hidden, generator=generator, dtype=dtype)
    suppressed = torch.zeros(vocabulary, dtype=torch.bool)
    suppressed[[2, 11]] = True
    allowed = (~suppressed).nonzero()[:, 0]
    targets = allowed[torch.randint(len(allowed), (tokens,), generator=generator)]
    return state.requires_grad_(), weight.requires_grad_(), targets, suppressed


def whole(state, weight, targets, suppressed, temperature):
    logits = (state @ weight.T / temperature).masked_fill(suppressed, -torch.inf)
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * torch.where(p > 0, log_p, 0)).sum(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], entropy


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_are_those_of_a_whole_log_softmax(chunk, temperature):
    state, weight, targets, suppressed = problem()
    expected, expected_entropy = whole(state, weight, targets, suppressed, temperature)
    upstream = torch.randn(len(targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_gradients = torch.autograd.grad((expected * upstream).sum(), (state, weight))
    values, entropy = chunked_logprobs(
        state, weight, targets, suppressed, temperature=temperature, chunk=chunk
    )
    gradients = torch.autograd.grad((values * upstream).sum(), (state, weight))
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    assert not entropy.requires_grad


def test_a_frozen_head_gets_no_gradient_and_passes_its_input_one():
    state, weight, targets, suppressed = problem()
    values, _ = chunked_logprobs(state, weight.detach(), targets, suppressed, temperature=1.0, chunk=4)
    values.sum().backward()
    assert state.grad.any()
    assert weight.grad is None


def test_in_bfloat16_the_softmax_is_in_fp32():
    state, weight, targets, suppressed = problem(dtype=torch.bfloat16)
    values, entropy = chunked_logprobs(state, weight, targets, suppressed, temperature=1.0, chunk=4)
    assert values.dtype == entropy.dtype == torch.float32
    expected, _ = whole(state.double(), weight.double(), targets, suppressed, 1.0)
    torch.testing.assert_close(values.double(), expected, atol=0.05, rtol=0.02)
    values.sum().backward()
    assert weight.grad.dtype == torch.bfloat16
