"""Log-probs and entropies from hidden states, without the logits.

Invariant: logits exist for one chunk of tokens at a time, in the forward and in the backward pass, so peak
memory does not grow with tokens × vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

DEFAULT_CHUNK = 1024
"""Tokens whose logits exist together: 0.6 GB in fp32 with Qwen's vocabulary of 152 k."""


def tempered(
    logits: torch.Tensor, suppressed: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Logits [N, vocabulary] of the distribution that is sampled from, in fp32 (fp64 stays fp64).

    suppressed [vocabulary]: ids that are never sampled; they get -inf. temperature: a number, or [N, 1].
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scaled = wide / temperature if wide is logits else wide.div_(temperature)
    return scaled.masked_fill_(suppressed, -torch.inf)


class _ChunkedLogprobs(torch.autograd.Function):
    """d log p(t) / d logits = (onehot(t) − p) / temperature; p is computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        suppressed: torch.Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, entropies = [], []
        for h, t in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            log_p = tempered(h @ weight.T, suppressed, temperature).log_softmax(-1)
            logprobs.append(log_p.gather(-1, t[:, None])[:, 0])
            p = log_p.exp()
            # a suppressed id has p = 0 and log p = −inf, and adds nothing
            entropies.append(-p.mul_(log_p.clamp_min_(torch.finfo(log_p.dtype).min)).sum(-1))
            del log_p, p  # or they would live beside the next chunk's
        ctx.save_for_backward(hidden, weight, targets, suppressed)
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, suppressed = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # chunks are summed in fp32: in bf16 every addition would round
        sums = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=sums) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            p = tempered(hidden[part] @ weight.T, suppressed, ctx.temperature).softmax(-1)
            scale = (grad[part] / ctx.temperature)[:, None]
            grad_logits = p.mul_(-scale)
            grad_logits.scatter_add_(-1, targets[part, None], scale.to(grad_logits.dtype))
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                if grad_weight.dtype == grad_logits.dtype:
                    grad_weight.addmm_(grad_logits.T, hidden[part])
                else:
                    grad_weight += grad_logits.T @ hidden[part]
            del p, grad_logits
        cast = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, cast, None, None, None, None


def chunked_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    suppressed: torch.Tensor,
    *,
    temperature: float,
    chunk: int = DEFAULT_CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each target and the entropy of its distribution, both [N], in fp32 (fp64 stays fp64).

    hidden [N, hidden size]: the state before each target; weight [vocabulary, hidden size]: of the output
    head; targets [N]: ids, none of them suppressed. Log-probs carry gradients to hidden and weight,
    entropies none.
    """
    if not len(targets):
        # no token: still part of the graph, so that every rank runs the same backward pass
        nothing = hidden.sum(-1)
        return nothing, nothing.detach()
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, targets, suppressed, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs, entropy
