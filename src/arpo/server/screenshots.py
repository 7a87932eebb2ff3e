"""Screens as the wire carries them.

Invariant: equal pixels become equal bytes, so equal digests mean an unchanged screen.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
from typing import Any, Literal

from PIL import Image

from arpo.protocol.messages import Observation, Screenshot, ScreenshotOptions

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_Format = Literal["png", "webp", "jpeg"]
_MEDIA_TYPES: dict[_Format, Literal["image/png", "image/webp", "image/jpeg"]] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}


class Encoder:
    """Turns a session's screens into observations; a screen that did not change is not encoded again."""

    def __init__(self, options: ScreenshotOptions) -> None:
        self._options = options
        self._png = b""
        self._observation: Observation | None = None

    async def observe(self, png: bytes) -> Observation:
        """The observation of a screen. Raises ValueError when `png` is no PNG.

        Pictures wider than `max_width` are scaled down with their aspect ratio kept. A PNG that needs nothing goes
        through untouched.
        """
        if self._observation is None or png != self._png:
            self._observation = await _observation(png, self._options)
            self._png = png
        return self._observation


async def _observation(png: bytes, options: ScreenshotOptions) -> Observation:
    width, height = png_size(png)
    too_wide = options.max_width is not None and width > options.max_width
    data = png
    if too_wide or options.format != "png":
        # Decoding and encoding a screen costs tens of milliseconds of CPU: off the event loop.
        data, width, height = await asyncio.to_thread(_encode, png, options)
    return Observation(
        screenshot=Screenshot(
            media_type=_MEDIA_TYPES[options.format],
            width=width,
            height=height,
            sha256=hashlib.sha256(data).hexdigest(),
            data=data,
        )
    )


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels from a PNG's header. Raises ValueError when it is none."""
    if len(png) < 24 or not png.startswith(_SIGNATURE) or png[12:16] != b"IHDR":
        raise ValueError(f"the desktop returned {len(png)} bytes that are no PNG")
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _encode(png: bytes, options: ScreenshotOptions) -> tuple[bytes, int, int]:
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    if options.max_width is not None and picture.width > options.max_width:
        height = max(1, round(picture.height * options.max_width / picture.width))
        picture = picture.resize((options.max_width, height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, options.format, **_parameters(options))
    return data.getvalue(), picture.width, picture.height


def _parameters(options: ScreenshotOptions) -> dict[str, Any]:
    match options.format:
        case "png":
            return {"compress_level": 1}
        case "webp":
            # On screens method 0 makes files twenty times as large, and those above 1 take twice the CPU for a tenth
            # of the bytes.
            return {"lossless": True, "method": 1, "quality": 20}
        case "jpeg":
            return {"quality": options.quality}
