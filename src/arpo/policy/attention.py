"""Causal attention inside packed rows.

Invariant: a token sees the tokens of its own trajectory up to itself and nothing else, and no mask of
[tokens × tokens] ever exists: every trajectory of a packed row is a causal attention of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "arpo_packed"
"""The name under which transformers' models find `packed_attention`."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_lengths: Sequence[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row: query [1, heads, L, d], key and value [1, kv heads, L, d] → [1, L, heads, d].

    packed_lengths: tokens of each trajectory in the row, summing to L. Without them this is transformers' own
    attention under `attention_mask`, which is what sampling with a key-value cache needs.
    """
    if packed_lengths is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1 and query.device.type == "cpu":
        # the CPU's fused kernel takes equal numbers of heads only; its fallback makes all scores at once
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        repeats = 1
    lengths = list(packed_lengths)
    parts = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=repeats > 1
        )
        for q, k, v in zip(*(torch.split(t, lengths, dim=2) for t in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
