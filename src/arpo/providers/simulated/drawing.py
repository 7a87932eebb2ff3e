"""Pictures as data: widgets put shapes on a canvas, and one pure function turns shapes into a PNG.

Invariant: equal shapes give equal bytes, whatever came before, so rendering can be cached across guests.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BLACK: Colour = (32, 32, 32)
WHITE: Colour = (255, 255, 255)
GREY: Colour = (150, 150, 150)
FACE: Colour = (225, 227, 231)
PANEL: Colour = (246, 246, 248)
ACCENT: Colour = (38, 108, 196)
SELECTION: Colour = (180, 210, 250)
DESK: Colour = (58, 84, 104)

LINE_HEIGHT = 18
_SIZE = 14


class Rect(NamedTuple):
    """A rectangle in pixels; the right and lower edges are outside."""

    x: int
    y: int
    w: int
    h: int

    def holds(self, x: int, y: int) -> bool:
        """Whether a point is inside."""
        return self.x <= x < self.x + self.w and self.y <= y < self.y + self.h

    @property
    def centre(self) -> tuple[int, int]:
        """The middle point."""
        return self.x + self.w // 2, self.y + self.h // 2


class _Box(NamedTuple):
    rect: Rect
    fill: Colour
    outline: Colour | None


class _Text(NamedTuple):
    x: int
    y: int
    text: str
    colour: Colour


class _Line(NamedTuple):
    points: tuple[int, ...]
    colour: Colour
    width: int


Shape = _Box | _Text | _Line


@dataclass
class Canvas:
    """Collects shapes, first at the bottom."""

    shapes: list[Shape] = field(default_factory=list)

    def box(self, rect: Rect, fill: Colour, outline: Colour | None = None) -> None:
        """A filled rectangle."""
        self.shapes.append(_Box(rect, fill, outline))

    def text(self, x: int, y: int, text: str, colour: Colour = BLACK) -> None:
        """One line of text with its upper left corner at (x, y)."""
        if text:
            self.shapes.append(_Text(x, y, text, colour))

    def centred(self, rect: Rect, text: str, colour: Colour = BLACK) -> None:
        """One line of text in the middle of a rectangle."""
        x, y = rect.centre
        self.text(x - text_width(text) // 2, y - LINE_HEIGHT // 2, text, colour)

    def line(self, *points: int, colour: Colour = BLACK, width: int = 2) -> None:
        """Straight strokes through x0, y0, x1, y1, ..."""
        self.shapes.append(_Line(points, colour, width))


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_SIZE)


@lru_cache(maxsize=4096)
def text_width(text: str) -> int:
    """Width of one line of text in pixels."""
    return round(_font().getlength(text))


def fitting_suffix(text: str, width: int) -> str:
    """The longest end of `text` that is at most `width` pixels wide."""
    start = 0
    while text_width(text[start:]) > width:
        start += 1
    return text[start:]


def fitting_prefix(text: str, width: int) -> str:
    """The longest start of `text` that is at most `width` pixels wide."""
    while text_width(text) > width:
        text = text[:-1]
    return text


def column_at(text: str, x: int) -> int:
    """The caret position in `text` nearest to `x` pixels from its start."""
    return min(range(len(text) + 1), key=lambda column: abs(text_width(text[:column]) - x))


@lru_cache(maxsize=512)
def render(shapes: tuple[Shape, ...], screen: tuple[int, int]) -> bytes:
    """The PNG of the shapes on a screen of (width, height) pixels."""
    image = Image.new("RGB", screen, DESK)
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        match shape:
            case _Box(rect, fill, outline):
                x, y, w, h = rect
                draw.rectangle((x, y, x + w - 1, y + h - 1), fill=fill, outline=outline)
            case _Text(x, y, text, colour):
                draw.text((x, y), text, fill=colour, font=_font())
            case _Line(points, colour, width):
                draw.line(points, fill=colour, width=width)
    return _png(image)


def _png(image: Image.Image) -> bytes:
    """An RGB image as PNG, in half the time that Pillow takes: rows are not filtered.

    The pictures are flat, so neither filters nor a higher level than 1 would make them much smaller.
    """
    width, height = image.size
    pixels, stride = image.tobytes(), width * 3
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, height * stride, stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
