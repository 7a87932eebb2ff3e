"""What vLLM's CPU build leaves undone when weights are changed."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform


def repack_tied_head(model: Any) -> None:
    """Make the output head's packed copy anew where the head is the embedding.

    On the CPU vLLM computes with packed copies of weights and makes them when a layer is loaded. A tied head is never
    loaded itself, so it would go on with the copy of the old embedding. Elsewhere there are no copies.
    """
    if not current_platform.is_cpu():
        return
    language_model = model.get_language_model()
    head = language_model.lm_head
    if language_model.config.tie_word_embeddings:
        head.weight = language_model.model.embed_tokens.weight
        head.quant_method.process_weights_after_loading(head)
