"""The learner's peer: ARPO's step as one writes it straight on top of transformers.

Rows of a micro-batch are padded on the right to the longest of them, the model returns the logits of every position,
log-probs come from a log-softmax over the whole vocabulary, and torch's AdamW takes the step. Every picture of every
row goes through the vision tower, without gradients, because it is frozen. Loss, weights and rows are the learner's:
only the way there differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from arpo.config.sections import LearnerSection
from arpo.learner.loss import importance_weight, policy_loss
from arpo.learner.rows import Row
from arpo.policy.load import Policy
from arpo.trajectory.store import ImageSource


class PlainHF:
    """Trains a policy made with plain attention.

    micro_batch: rows that are padded together. pad_to_batch: to the longest row of the step in place of the longest
    of the micro-batch.
    """

    def __init__(
        self, policy: Policy, section: LearnerSection, *, micro_batch: int, pad_to_batch: bool = False
    ) -> None:
        self._policy = policy
        self._section = section
        self._micro_batch = micro_batch
        self._pad_to_batch = pad_to_batch
        self.trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=section.lr, betas=section.betas, weight_decay=section.weight_decay
        )

    def padded_tokens(self, rows: Sequence[Row]) -> int:
        """Positions that a step computes, padding included."""
        return sum(len(part) * self._length(part, rows) for part in self._micro_batches(rows))

    def step(self, rows: Sequence[Row], images: ImageSource) -> float:
        """Backward over all micro-batches, then one update. Returns the norm of the gradient."""
        self._policy.model.train()
        share = 1 / sum(len(row.sampled) for row in rows)
        for part in self._micro_batches(rows):
            log_pi = self._logprobs(part, self._length(part, rows), images)
            counts = torch.tensor([len(row.sampled) for row in part])
            advantage = torch.tensor([row.advantage for row in part]).repeat_interleave(counts).to(log_pi)
            behaviour = torch.cat([row.behaviour for row in part]).to(log_pi)
            log_pi_old = log_pi.detach()
            weight = importance_weight(log_pi_old, behaviour, self._section.importance_cap)
            result = policy_loss(
                log_pi,
                log_pi_old,
                advantage,
                weight,
                torch.full_like(weight, share),
                section=self._section,
            )
            result.loss.backward()
        norm = float(clip_grad_norm_(self.trained.values(), self._section.grad_clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _micro_batches(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        return [rows[start : start + self._micro_batch] for start in range(0, len(rows), self._micro_batch)]

    def _length(self, part: Sequence[Row], rows: Sequence[Row]) -> int:
        return max(len(row.token_ids) for row in (rows if self._pad_to_batch else part))

    def _logprobs(self, rows: Sequence[Row], length: int, images: ImageSource) -> torch.Tensor:
        """log π of every row's sampled tokens, row after row."""
        policy = self._policy
        ids = torch.full((len(rows), length), policy.pad_token_id)
        attention_mask = torch.zeros_like(ids)
        sampled = torch.zeros_like(ids, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row.token_ids)] = row.token_ids.long()
            attention_mask[index, : len(row.token_ids)] = 1
            sampled[index, row.sampled.long()] = True
        ids, sampled = ids.to(policy.device), sampled.to(policy.device)
        logits = policy.model(
            input_ids=ids,
            attention_mask=attention_mask.to(policy.device),
            mm_token_type_ids=(ids == policy.encoder.image_token_id).int(),
            use_cache=False,
            **self._pixels(rows, images),
        ).logits.float()
        # ids that the engine never samples have no probability
        logits.masked_fill_(policy.suppressed, -torch.inf)
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return logprobs[sampled[:, 1:]]

    def _pixels(self, rows: Sequence[Row], images: ImageSource) -> dict[str, Any]:
        decoded = [self._policy.images.decode(images(name)) for row in rows for name in row.images]
        return {
            "pixel_values": torch.cat([image.pixel_values for image in decoded]).to(self._policy.device),
            "image_grid_thw": torch.tensor([image.grid for image in decoded], device=self._policy.device),
        }
