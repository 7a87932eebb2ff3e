"""Encoded screenshots → what the vision tower reads.

Invariant: a picture is preprocessed by the model's own image processor (PIL), and its token count is the one
that `ChatEncoder` put into the row.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from arpo.policy.limits import IMAGES_KEPT_BYTES


@dataclass(frozen=True)
class EncodedImage:
    """One picture.

    pixel_values: [patches, channels · time · side²], fp32. grid: patches in time, height and width.
    """

    pixel_values: torch.Tensor
    grid: tuple[int, int, int]
    tokens: int


class ImageEncoder:
    """Preprocesses pictures and remembers the latest ones. Safe to use from several threads.

    processor: a Hugging Face Qwen2-VL image processor. cache_bytes: bound of what is remembered; the picture
    that was used longest ago leaves first.
    """

    def __init__(self, processor: Any, *, cache_bytes: int = IMAGES_KEPT_BYTES) -> None:
        self._processor = processor
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[str, EncodedImage] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()

    def encode(self, data: bytes) -> EncodedImage:
        """Preprocess an encoded picture (PNG or anything else that Pillow reads). Raises ValueError."""
        return self.get(hashlib.sha256(data).hexdigest(), lambda _: data)

    def get(self, sha256: str, load: Callable[[str], bytes]) -> EncodedImage:
        """The picture with that hash; `load(sha256)` is asked for its bytes only when it is not remembered.

        Raises ValueError when the bytes are no picture, and whatever `load` raises.
        """
        with self._lock:
            if sha256 in self._cached:
                self._cached.move_to_end(sha256)
                return self._cached[sha256]
        encoded = self.decode(load(sha256))
        with self._lock:
            if sha256 not in self._cached:
                self._cached[sha256] = encoded
                self._used_bytes += encoded.pixel_values.nbytes
            while self._used_bytes > self._cache_bytes and len(self._cached) > 1:
                _, oldest = self._cached.popitem(last=False)
                self._used_bytes -= oldest.pixel_values.nbytes
        return encoded

    def decode(self, data: bytes) -> EncodedImage:
        """Preprocess an encoded picture without remembering it. Raises ValueError."""
        try:
            with Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{len(data)} bytes are not a picture: {error}") from error
        features = self._processor(images=picture, return_tensors="pt")
        time, height, width = features["image_grid_thw"][0].tolist()
        return EncodedImage(
            pixel_values=features["pixel_values"],
            grid=(time, height, width),
            tokens=time * height * width // self._processor.merge_size**2,
        )
