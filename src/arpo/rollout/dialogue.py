"""The conversation of one episode, in the language of its engine: token ids or words.

Invariant: a dialogue in tokens is one growing row (`RowBuilder`), so what is recorded is what the engine was shown and what
it sampled. A dialogue in words records no row at all, so nothing can ever be trained on it.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from arpo.agent.coordinates import smart_resize
from arpo.protocol.messages import Screenshot
from arpo.rollout.engines.base import AnyEngine, Engine, Message, Sampling, WordsEngine
from arpo.rollout.row import Encoder, Row, RowBuilder


@dataclass(frozen=True)
class Reply:
    """An assistant turn. start, end, pushes: as in `Turn`, in positions of the row; 0, 0 and none where there is no row."""

    text: str
    policy_version: int
    start: int = 0
    end: int = 0
    pushes: tuple[tuple[int, int], ...] = ()
    queued_s: float = field(default=0.0, compare=False)


class Dialogue(Protocol):
    """One episode's conversation with its engine."""

    @property
    def row(self) -> Row:
        """What was shown and sampled so far."""

    def observe(self, screenshot: Screenshot) -> None:
        """Show a screenshot."""

    async def reply(self, sampling: Sampling) -> Reply:
        """Let the engine answer; its answer is part of the conversation from then on. Raises EngineError."""


@dataclass(frozen=True)
class Words:
    """How a conversation in words is held.

    history_screenshots: only the pictures of so many latest turns are shown; of older turns the answers alone, as UI-TARS
    was trained and OSWorld's UI-TARS agent does. min_pixels, max_pixels: pictures are resized into these bounds.
    """

    history_screenshots: int
    min_pixels: int
    max_pixels: int


def open_dialogue(engine: AnyEngine, language: Encoder | Words, system: str, prompt: str) -> Dialogue:
    """A new conversation: a system message, if there is one, and the user's prompt.

    Raises TypeError when the engine does not speak the language.
    """
    if isinstance(language, Words):
        if not isinstance(engine, WordsEngine):
            raise TypeError(f"{type(engine).__name__} does not speak words")
        return _WordsDialogue(engine, language, system, prompt)
    if isinstance(engine, WordsEngine):
        raise TypeError(f"{type(engine).__name__} speaks words, not token ids")
    return _TokenDialogue(engine, language, system, prompt)


class _TokenDialogue:
    def __init__(self, engine: Engine, encoder: Encoder, system: str, prompt: str) -> None:
        self._engine = engine
        self._stop_token_ids = encoder.stop_token_ids
        self._builder = RowBuilder(encoder, system, prompt)

    @property
    def row(self) -> Row:
        built = self._builder
        return Row(built.token_ids, built.loss_mask, built.logprobs, built.images)

    def observe(self, screenshot: Screenshot) -> None:
        self._builder.observe(screenshot)

    async def reply(self, sampling: Sampling) -> Reply:
        built = self._builder
        sampling = replace(sampling, stop_token_ids=self._stop_token_ids)
        generation = await self._engine.generate(built.token_ids, built.pictures, sampling)
        start, end, text = built.generated(generation)
        return Reply(
            text,
            generation.policy_version,
            start,
            end,
            tuple((start + at, version) for at, version in generation.pushes),
            generation.queued_s,
        )


class _WordsDialogue:
    row = Row()

    def __init__(self, engine: WordsEngine, words: Words, system: str, prompt: str) -> None:
        self._engine = engine
        self._words = words
        self._messages = [Message("system", system)] if system else []
        self._messages.append(Message("user", prompt))

    def observe(self, screenshot: Screenshot) -> None:
        self._messages.append(_message(screenshot, self._words))
        pictures = [message for message in self._messages if message.picture]
        if len(pictures) > self._words.history_screenshots:
            self._messages.remove(pictures[0])

    async def reply(self, sampling: Sampling) -> Reply:
        utterance = await self._engine.say(list(self._messages), sampling)
        self._messages.append(Message("assistant", utterance.text))
        return Reply(utterance.text, self._engine.policy_version, queued_s=utterance.queued_s)


def _message(screenshot: Screenshot, words: Words) -> Message:
    """A screenshot as the policy may see it.

    Within the bounds it goes as it is: the server rounds its sides to whole image tokens itself, whatever bounds of its own
    it has. Beyond them it is resized here, because the policy's coordinates are of the resized picture.
    """
    screen = screenshot.width, screenshot.height
    size = smart_resize(*screen, min_pixels=words.min_pixels, max_pixels=words.max_pixels)
    if size == smart_resize(*screen, min_pixels=0, max_pixels=sys.maxsize):
        return Message("user", picture=screenshot.data, media_type=screenshot.media_type)
    resized = io.BytesIO()
    with Image.open(io.BytesIO(screenshot.data)) as picture:
        picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(resized, "PNG", compress_level=1)
    return Message("user", picture=resized.getvalue(), media_type="image/png")
