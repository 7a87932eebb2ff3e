"""Log-probs of tokens under the policy.

Invariant: engine and learner scale and mask logits with the same function (`head.tempered`), and what a
trajectory's log-probs are does not depend on what else is in its packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from arpo.policy.head import DEFAULT_CHUNK, chunked_logprobs, tempered
from arpo.policy.inputs import pack
from arpo.policy.vision import VisionTower
from arpo.trajectory.store import ImageSource

if TYPE_CHECKING:
    from arpo.policy.load import Policy


@dataclass(frozen=True)
class TokenRow:
    """A trajectory as the model reads it.

    token_ids hold one image-pad id for each image token of the pictures `images`, named by sha256, in order.
    wanted: indices, each ≥ 1, of the tokens whose log-probs are asked for.
    """

    token_ids: Sequence[int] | torch.Tensor
    images: Sequence[str]
    wanted: Sequence[int] | torch.Tensor


def tempered_logits(policy: Policy, hidden: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """Logits of the distribution that is sampled from: [N, hidden] → [N, vocabulary], fp32.

    temperature: a number, or [N, 1]. Ids that would pretend to be a picture get -inf: sampled into a row,
    they would break its pairing of image tokens and pictures.
    """
    return tempered(policy.model.get_output_embeddings()(hidden), policy.suppressed, temperature)


def packed_logprobs(
    policy: Policy,
    rows: Sequence[TokenRow],
    images: ImageSource,
    *,
    temperature: float,
    tower: VisionTower | None = None,
    chunk: int = DEFAULT_CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies [N] of the wanted tokens, row after row, each given what precedes it in its row.

    The rows are packed into one without padding: one forward pass. Log-probs carry gradients, entropies do
    not. tower: remembers pictures between calls. Raises ValueError for index 0, and for rows that do not fit
    their pictures.
    """
    positions = [torch.as_tensor(row.wanted, dtype=torch.long) for row in rows]
    if any(bool((wanted < 1).any()) for wanted in positions):
        raise ValueError("the first token of a row cannot be a sampled one")
    tower = tower or VisionTower(policy, cache_bytes=0)
    features = tower.features([name for row in rows for name in row.images], images)
    inputs = pack(policy, [(row.token_ids, [features[name] for name in row.images]) for row in rows])
    outputs = policy.model.model(
        input_ids=inputs.input_ids,
        attention_mask=None,
        position_ids=inputs.position_ids,
        use_cache=False,
        mm_encoder_outputs=inputs.vision(),
        packed_lengths=inputs.lengths,
    )
    starts = accumulate([0, *inputs.lengths[:-1]])
    wanted = torch.cat([start + row for start, row in zip(starts, positions, strict=True)]).to(policy.device)
    hidden = outputs.last_hidden_state[0]
    logprobs, entropy = chunked_logprobs(
        hidden[wanted - 1],
        policy.model.get_output_embeddings().weight,
        inputs.input_ids[0, wanted],
        policy.suppressed,
        temperature=temperature,
        chunk=chunk,
    )
    if "" in features:  # the blank picture must be in the graph, or its backward pass would be missing here
        blank = features[""]
        logprobs = logprobs + 0.0 * sum(t.sum() for t in (blank.embedding, *blank.deepstack))
    return logprobs, entropy
