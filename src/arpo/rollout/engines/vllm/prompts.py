"""Our prompts as vLLM takes them.

Invariant: vLLM sees the token ids and the pixels that the learner sees. It expands one placeholder a picture into
image tokens by itself, so pictures are brought to the size of the policy's own image processor (PIL) beforehand, which
leaves its processor nothing to resize; what it made of the ids is compared with ours in `Prompt.check`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from arpo.agent.coordinates import smart_resize

_PICTURES_KEPT = 64
"""Decoded ones: an episode shows its pictures again at every step. 6 MB each at 1920×1080."""


@dataclass(frozen=True)
class _Picture:
    image: Image.Image
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Prompt:
    """token_ids: ours, one image-pad id an image token. collapsed: one a picture."""

    token_ids: list[int]
    collapsed: list[int]
    pictures: list[_Picture]

    def request(self, sampled: Sequence[int]) -> dict[str, Any]:
        """What vLLM is asked to continue: the prompt and what was sampled so far."""
        request: dict[str, Any] = {"prompt_token_ids": [*self.collapsed, *sampled]}
        if self.pictures:
            request["multi_modal_data"] = {"image": [picture.image for picture in self.pictures]}
            # vLLM's caches know a picture by its bytes' hash, without looking at its pixels
            request["multi_modal_uuids"] = {"image": [picture.sha256 for picture in self.pictures]}
        return request

    def check(self, expanded: Sequence[int] | None, sampled: Sequence[int]) -> None:
        """Raises ValueError when vLLM continues another prompt than ours."""
        ours = [*self.token_ids, *sampled]
        if expanded is None or list(expanded) != ours:
            raise ValueError(
                f"vLLM made {len(expanded or ())} tokens of a prompt of {len(ours)}: they are not the learner's"
            )


class PromptReader:
    """Reads prompts for one model. Safe to use from several threads.

    factor: pixels a side that one image token stands for. min_pixels, max_pixels: bounds of the picture that the
    model sees.
    """

    def __init__(self, *, image_token_id: int, factor: int, min_pixels: int, max_pixels: int) -> None:
        self._image_token_id = image_token_id
        self._factor = factor
        self._bounds = (min_pixels, max_pixels)
        self._picture = lru_cache(_PICTURES_KEPT)(self._decode)

    def read(self, prompt_ids: Sequence[int], images: Sequence[bytes]) -> Prompt:
        """Pair image tokens with pictures.

        Raises ValueError when the prompt is empty, a picture cannot be read, or the image tokens are not those of
        the pictures.
        """
        if not prompt_ids:
            raise ValueError("the prompt is empty")
        pictures = [self._picture(data) for data in images]
        ids, pad = list(prompt_ids), self._image_token_id
        collapsed: list[int] = []
        place = 0
        for picture in pictures:
            try:
                first = ids.index(pad, place)
            except ValueError:
                first = len(ids)
            collapsed += ids[place:first]
            place = first + picture.tokens
            if ids[first:place] != [pad] * picture.tokens:
                break
            collapsed.append(pad)
        rest = ids[place:]
        if pad in rest or place > len(ids) or collapsed.count(pad) != len(pictures):
            raise ValueError(
                f"the prompt holds {ids.count(pad)} image tokens, its {len(pictures)} pictures are "
                f"{sum(picture.tokens for picture in pictures)}"
            )
        return Prompt(ids, collapsed + rest, pictures)

    def _decode(self, data: bytes) -> _Picture:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{len(data)} bytes are not a picture: {error}") from error
        low, high = self._bounds
        size = smart_resize(*image.size, factor=self._factor, min_pixels=low, max_pixels=high)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        tokens = (size[0] // self._factor) * (size[1] // self._factor)
        return _Picture(image, hashlib.sha256(data).hexdigest(), tokens)
