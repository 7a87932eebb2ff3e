"""Rows → packed forward passes on all ranks.

Invariant: every rank makes the same passes at the same time, each over its own rows, and a row's log-probs are
those that it would have alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from arpo.learner.packing import plan
from arpo.learner.ranks import Ranks
from arpo.learner.rows import Row
from arpo.learner.sharding import ShardedPolicy
from arpo.trajectory.store import ImageSource


@dataclass(frozen=True)
class Tokens:
    """The N sampled tokens of one pass, row after row. logprobs carries gradients, entropy does not."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    counts: list[int]
    """Sampled tokens of each row; they sum to N."""

    def spread(self, values: Sequence[float | bool]) -> torch.Tensor:
        """One value a row → one value a token [N]."""
        dtype = torch.bool if values and isinstance(values[0], bool) else self.logprobs.dtype
        repeats = torch.tensor(self.counts, dtype=torch.long)
        return torch.tensor(values, dtype=dtype).repeat_interleave(repeats).to(self.logprobs.device)


class Passes:
    """Runs rows through the policy.

    limit: tokens of a packed row. temperature: of the distribution that was sampled from.
    """

    def __init__(self, policy: ShardedPolicy, ranks: Ranks, *, limit: int, temperature: float) -> None:
        self.policy = policy
        self.ranks = ranks
        self._limit = limit
        self._temperature = temperature

    def run(self, rows: Sequence[Row], images: ImageSource) -> Iterator[tuple[list[int], Tokens]]:
        """This rank's passes one after the other: the indices of a pass's rows, and their tokens.

        Every rank gets as many, some of them without rows. Take a pass's backward step before the next one.
        """
        passes = plan(
            [len(row.token_ids) for row in rows],
            ranks=self.ranks.size,
            limit=self._limit,
            hidden_size=self.policy.hidden_size,
        )
        for indices in passes[self.ranks.rank]:
            own = [rows[index] for index in indices]
            logprobs, entropy = self.policy([row.token_row() for row in own], images, self._temperature)
            yield indices, Tokens(logprobs, entropy, [len(row.sampled) for row in own])

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], images: ImageSource) -> list[torch.Tensor]:
        """log π of every row's sampled tokens under the weights as they are, on the CPU, on every rank."""
        own: dict[int, torch.Tensor] = {}
        for indices, tokens in self.run(rows, images):
            parts = torch.split(tokens.logprobs.cpu(), tokens.counts)
            own |= {index: part.clone() for index, part in zip(indices, parts, strict=False)}
        everything: dict[int, torch.Tensor] = {}
        for part in self.ranks.gather(own):
            everything |= part
        return [everything[index] for index in range(len(rows))]
