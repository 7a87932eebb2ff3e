"""Token ids of a conversation, built piece by piece.

Invariant: concatenating the pieces gives what Qwen's chat template gives for the same messages, and no piece
is ever tokenised twice; ids that were sampled stay the ids that were sampled. Text is data: inside a text the
name of a token that opens or closes messages or pictures is plain characters. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer

from arpo.agent.coordinates import smart_resize
from arpo.protocol.problems import ConfigError

# They mark up text and structure nothing: UI-TARS's prompt and replies hold them, as tokens.
_MARKUP = frozenset(
    f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")
)


class ChatEncoder:
    """Encodes messages for a Qwen-VL policy.

    tokenizer: the policy's; a private copy is made, so its settings stay as they are.
    factor: pixels a side that one image token stands for (patch size · merge size).
    min_pixels, max_pixels: bounds of the picture that the model sees.
    Raises ConfigError when the tokenizer has not Qwen's control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, factor: int, min_pixels: int, max_pixels: int) -> None:
        document = json.loads(tokenizer.to_str())
        for token in document["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in _MARKUP
        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        self._tokenizer.encode_special_tokens = True  # "encode" as plain text, that is
        self._factor = factor
        self._min_pixels = min_pixels
        self._max_pixels = max_pixels
        self._im_start = self._control("<|im_start|>")
        self._im_end = self._control("<|im_end|>")
        self._vision_start = self._control("<|vision_start|>")
        self._vision_end = self._control("<|vision_end|>")
        self.image_token_id = self._control("<|image_pad|>")
        self.video_token_id = self._control("<|video_pad|>")
        self._newline = self._plain("\n")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an assistant turn."""
        return (self._im_end,)

    def text_message(self, role: str, text: str) -> list[int]:
        """`<|im_start|>role\\ntext<|im_end|>\\n`."""
        return [self._im_start, *self._plain(f"{role}\n{text}"), self._im_end, *self._newline]

    def image_message(self, width: int, height: int) -> tuple[list[int], int]:
        """A user message that is one picture of that size in pixels: its ids, and how many are image tokens.

        Raises ValueError when the picture's sides differ by more than a factor of 200.
        """
        tokens = self.image_tokens(width, height)
        ids = [self._im_start, *self._plain("user\n"), self._vision_start]
        ids += [self.image_token_id] * tokens
        ids += [self._vision_end, self._im_end, *self._newline]
        return ids, tokens

    def image_tokens(self, width: int, height: int) -> int:
        """How many image tokens stand for a picture of that size in pixels."""
        resized_width, resized_height = smart_resize(
            width, height, factor=self._factor, min_pixels=self._min_pixels, max_pixels=self._max_pixels
        )
        return (resized_width // self._factor) * (resized_height // self._factor)

    def generation_prompt(self) -> list[int]:
        """`<|im_start|>assistant\\n`: what the policy continues."""
        return [self._im_start, *self._plain("assistant\n")]

    def close_turn(self, stopped: bool) -> list[int]:
        """What stands between a generation and the next message; never trained on.

        stopped: the generation ended with a sampled stop token; otherwise the length limit cut it.
        """
        return list(self._newline) if stopped else [self._im_end, *self._newline]

    def encode_reply(self, text: str) -> list[int]:
        """The ids of an assistant turn as the policy would sample it, the stop token included."""
        return [*self._plain(text), self._im_end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generation, without the stop token that ended it."""
        kept = list(ids[:-1]) if ids and ids[-1] == self._im_end else list(ids)
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _control(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(
                f"the model's tokenizer has no {token}; use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model"
            )
        return token_id
