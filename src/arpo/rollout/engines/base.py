"""The contracts of the engines: one in token ids, to train on; one in words, only to evaluate with.

Invariant: what the engine sampled is what the learner trains on. Token ids go in and token ids come out; the
log-probs are those of the distribution that was sampled from (after temperature).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from arpo.protocol.problems import ArpoError

if TYPE_CHECKING:
    import torch


class EngineError(Exception):
    """The engine failed; the episode that asked is not the agent's fault."""


class EngineUnusableError(ArpoError):
    """No request to the engine can succeed, whoever asks (a wrong key, no such model): it ends what asked."""


@dataclass(frozen=True)
class Sampling:
    """temperature 0 means greedy (log-probs then are of the untempered distribution)."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """What was sampled: ids with the stop token included when one ended it, and a log-prob for each id."""

    token_ids: list[int]
    logprobs: list[float]
    policy_version: int
    """The version that sampled the first token."""
    stopped: bool
    """True: a stop token ended it; False: the token limit did."""
    pushes: tuple[tuple[int, int], ...] = ()
    """(index, version): from that token on a newer version sampled, as weights were pushed amid the reply."""
    queued_s: float = field(default=0.0, compare=False)
    """How long the request waited before the engine began to work on it."""


class Engine(Protocol):
    """Samples continuations. Safe to call concurrently; requests may be batched."""

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""

    async def generate(
        self, prompt_ids: Sequence[int], images: Sequence[bytes], sampling: Sampling
    ) -> Generation:
        """Continue a prompt.

        prompt_ids: with one image-pad id for each image token (already expanded).
        images: encoded screenshots, in the order of their places in the prompt.
        Raises EngineError.
        """

    async def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take new weights, whole parameters by name. No request fails; requests that start after the return use the
        new version. Raises EngineError, with the old weights kept, when names or shapes differ.
        """

    async def close(self) -> None:
        """Release memory and threads."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation in words: a text or an encoded picture, not both."""

    role: Literal["system", "user", "assistant"]
    text: str = ""
    picture: bytes = b""
    media_type: str = ""


@dataclass(frozen=True)
class Utterance:
    """What a words engine said. queued_s: how long the request waited before the engine began to work on it."""

    text: str
    queued_s: float = field(default=0.0, compare=False)


@runtime_checkable
class WordsEngine(Protocol):
    """Answers conversations in words. Nobody knows the tokens, so nothing can be learned from what it says.

    Safe to call concurrently.
    """

    @property
    def policy_version(self) -> int:
        """Always the same: nobody pushes weights to it."""

    async def say(self, messages: Sequence[Message], sampling: Sampling) -> Utterance:
        """The assistant turn that follows. Raises EngineError, EngineUnusableError."""

    async def close(self) -> None:
        """Release connections."""


AnyEngine = Engine | WordsEngine
