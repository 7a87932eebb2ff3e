"""Builds the row of one episode: the token ids that the engine is shown and those that it sampled.

Invariant: the row only grows. What the engine saw at turn k is a prefix of what it sees at turn k + 1, so that one
forward pass over the finished row gives every turn the same context that it was sampled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from arpo.protocol.messages import Screenshot
from arpo.rollout.engines.base import Generation
from arpo.trajectory import ImageRef


class Encoder(Protocol):
    """Token ids of a conversation's parts (`arpo.policy.encoder.ChatEncoder`)."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn."""

    def text_message(self, role: str, text: str) -> list[int]:
        """A whole message of text."""

    def image_message(self, width: int, height: int) -> tuple[list[int], int]:
        """A user message with one picture: its ids and how many of them are image tokens."""

    def generation_prompt(self) -> list[int]:
        """What precedes an assistant turn."""

    def close_turn(self, stopped: bool) -> list[int]:
        """What follows an assistant turn; `stopped` as in `Generation`."""

    def encode_reply(self, text: str) -> list[int]:
        """An assistant turn as the engine would have sampled it, its stop token included."""

    def decode(self, ids: list[int]) -> str:
        """Text of an assistant turn, without control tokens."""


@dataclass(frozen=True)
class Row:
    """A finished row, as `Trajectory` has it; empty for an episode that was held in words."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    images: list[ImageRef] = field(default_factory=list)


class RowBuilder:
    """Accumulates one episode's row."""

    def __init__(self, encoder: Encoder, system: str, prompt: str) -> None:
        self._encoder = encoder
        self.token_ids: list[int] = []
        self.loss_mask: list[bool] = []
        self.logprobs: list[float] = []
        self.images: list[ImageRef] = []
        self.pictures: list[bytes] = []
        self._context(encoder.text_message("system", system) if system else [])
        self._context(encoder.text_message("user", prompt))

    def observe(self, screenshot: Screenshot) -> None:
        """Add a screenshot and the opening of the assistant's turn that answers it."""
        ids, tokens = self._encoder.image_message(screenshot.width, screenshot.height)
        self._context(ids)
        self._context(self._encoder.generation_prompt())
        self.images.append(
            ImageRef(
                sha256=screenshot.sha256, width=screenshot.width, height=screenshot.height, tokens=tokens
            )
        )
        self.pictures.append(screenshot.data)

    def generated(self, generation: Generation) -> tuple[int, int, str]:
        """Add a sampled turn; returns its span [start, end) and its text."""
        start = len(self.token_ids)
        self.token_ids += generation.token_ids
        self.logprobs += generation.logprobs
        self.loss_mask += [True] * len(generation.token_ids)
        end = len(self.token_ids)
        self._context(self._encoder.close_turn(generation.stopped))
        return start, end, self._encoder.decode(generation.token_ids)

    def _context(self, ids: list[int]) -> None:
        self.token_ids += ids
        self.loss_mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
