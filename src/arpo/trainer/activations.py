"""What a forward pass keeps for its backward pass, and what lives for a moment inside it, in bytes.

Invariant: each function counts the tensors of one piece of the model's code, with the widths of `arpo.trainer.shapes`
and `e` bytes a number. What does not grow with the tokens is left out.
"""

from __future__ import annotations

from arpo.trainer.shapes import TextShape, VisionShape

WIDE = 4
"""Bytes of an fp32 number: norms and rotary positions of vision towers are computed in fp32."""


def rms_norm(width: int, e: int, *, trained: bool) -> int:
    """Kept a token: the input in fp32 (there, the residual stream itself), what the scale multiplies, the result."""
    return WIDE * width + (e * width if trained else 0) + e * width


def text_layer(text: TextShape, e: int, *, gpu: bool, lora_rank: int = 0, dropout: float = 0.0) -> int:
    """Kept a token by one layer of the language model.

    Two norms, whose results the linear maps keep; query, key, value and result of the attention, and that result
    again in the order that the output map reads; gate, activated gate, up and their product. With adapters the frozen
    scales keep nothing, each adapter keeps its narrow middle, and under dropout its own input and a mask.
    """
    query, key, trained = text.query, text.key, lora_rank == 0
    # the CPU's attention wants as many key heads as query heads
    own_key = query if not gpu and text.heads > text.kv_heads else key
    kept = 2 * rms_norm(text.hidden, e, trained=trained)
    kept += e * (3 * query + 2 * own_key) + WIDE * text.heads
    if text.qk_norm:
        kept += (WIDE + (e if trained else 0)) * (query + key)
    kept += e * 4 * text.intermediate
    if lora_rank:
        kept += e * 7 * lora_rank
        inputs = 5 * text.hidden + query + text.intermediate
        kept += (e + 1) * inputs if dropout else 0
    return kept


def text_ends(text: TextShape, e: int) -> int:
    """Kept a token outside the layers: the last norm, cosines and sines, ids and positions."""
    return rms_norm(text.hidden, e, trained=True) + e * 2 * text.head_dim + 4 * 8


def text_backward(text: TextShape, e: int) -> int:
    """Alive a token while a layer's gradients are computed: those of product, gate and up, and of two streams."""
    return e * (2 * text.intermediate + 2 * text.hidden)


def text_mlp_forward(text: TextShape, e: int) -> int:
    """Alive a token in an MLP when nothing is kept: activated gate, up and product; four states of the stream."""
    return e * 3 * text.intermediate + (WIDE + 3 * e) * text.hidden


def text_attention_forward(text: TextShape, e: int) -> int:
    """Alive a token in an attention when nothing is kept: under a mask keys and values are repeated for all heads."""
    return e * (4 * text.query + 2 * text.key) + (WIDE + 2 * e) * text.hidden


def vision_block(vision: VisionShape, e: int) -> int:
    """Kept a patch by one block: two norms; query, key, the three of them before rotation, result twice; the MLP."""
    hidden = vision.hidden
    widths = 4 if vision.gated else 2
    return 2 * _vision_norm(vision, e) + e * 7 * hidden + e * widths * vision.intermediate


def _vision_norm(vision: VisionShape, e: int) -> int:
    """An RMS norm, or a layer norm, which keeps its input and its result."""
    return rms_norm(vision.hidden, e, trained=True) if vision.gated else 2 * e * vision.hidden


def vision_ends(vision: VisionShape, e: int) -> int:
    """Kept a patch outside the blocks: pixels, and in each merger a norm, the middle twice, and the result."""
    merger = _vision_norm(vision, e) + 2 * e * vision.hidden + e * vision.out // vision.merge**2
    return pixels(vision) + (1 + vision.levels) * merger


def pixels(vision: VisionShape) -> int:
    """Of one patch, as the image processor gives it."""
    return WIDE * vision.patch_values


def vision_forward(vision: VisionShape, e: int) -> int:
    """Alive a patch when nothing is kept: rotation of query and key in fp32, or the MLP, or learned positions.

    Positions are blended from four neighbours, in fp32.
    """
    hidden = vision.hidden
    rotation = e * 6 * hidden + WIDE * (4 if e == WIDE else 6) * hidden
    mlp = e * (3 * hidden + (3 if vision.gated else 2) * vision.intermediate)
    blending = WIDE * 10 * hidden + e * vision.patch_values if vision.positions else 0
    return max(rotation, mlp, blending)


def head_forward(vocabulary: int, chunk: int) -> int:
    """Two copies of one chunk in fp32: tempered logits and their log-softmax, or that and its exponentials."""
    return 2 * WIDE * vocabulary * chunk


def head_backward(vocabulary: int, hidden: int, chunk: int, e: int, *, trained: bool) -> int:
    """The head's gradient in fp32; beside it the tempered logits and their softmax, or the logits' gradient and its
    product with the hidden states, which in bf16 is a matrix of its own.
    """
    narrow = e < WIDE
    gradient = WIDE * vocabulary * hidden if trained else 0
    product = e * vocabulary * hidden if trained and narrow else 0
    softmax = 2 * WIDE * vocabulary * chunk
    logits = ((e + WIDE) if narrow else WIDE) * vocabulary * chunk
    return gradient + max(softmax, logits + product)
