"""Curves with confidence bands as a PNG, drawn with Pillow alone.

Invariant: a band is the 95 % interval of Student's t over the seeds' means, cut off at 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from PIL import Image, ImageDraw, ImageFont

# two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_T95_LARGE = 1.96

COLOURS = {"arpo": (31, 119, 180), "arpo-no-importance": (44, 160, 44), "grpo": (214, 96, 20)}
_INK, _GRID = (40, 40, 40), (225, 225, 225)
_SIZE, _SCALE = (900, 620), 2  # drawn twice as large, then reduced: Pillow's lines are not smooth
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 130, 875, 555


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of some probabilities over seeds; a single one has no width."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, mean, mean)
    degrees = len(values) - 1
    t = _T95[degrees - 1] if degrees <= len(_T95) else _T95_LARGE
    half = t * stdev(values) / math.sqrt(len(values))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def plot(curves: Mapping[str, Sequence[Sequence[float]]], path: Path, *, title: str, across: str) -> None:
    """Draw success over steps: for each arm one curve a seed, shown as their mean and band.

    curves: arm → seeds → success at step 1, 2, …; all equally long. across: what the horizontal axis counts.
    """
    bands = {
        arm: [interval(at_step) for at_step in zip(*seeds, strict=True)] for arm, seeds in curves.items()
    }
    last = max(len(band) for band in bands.values())
    picture = Image.new("RGB", (_SIZE[0] * _SCALE, _SIZE[1] * _SCALE), "white")
    canvas = ImageDraw.Draw(picture, "RGBA")

    def at(step: float, success: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * step / max(last, 1)
        return x * _SCALE, (_BOTTOM - (_BOTTOM - _TOP) * success) * _SCALE

    for tenth in range(0, 11, 2):
        canvas.line([at(0, tenth / 10), at(last, tenth / 10)], fill=_GRID, width=_SCALE)
        x, y = at(0, tenth / 10)
        _write(canvas, (x - 10 * _SCALE, y), f"{tenth / 10:.1f}", "rm")
    spacing = max(1, round(last / 6 / 5) * 5)
    for step in range(0, last + 1, spacing):
        x, y = at(step, 0)
        _write(canvas, (x, y + 8 * _SCALE), str(step), "ma")
    for arm, band in bands.items():
        edge = [at(step, i.high) for step, i in enumerate(band, start=1)]
        edge += [at(step, i.low) for step, i in reversed(list(enumerate(band, start=1)))]
        canvas.polygon(edge, fill=(*COLOURS[arm], 45))
    for arm, band in bands.items():
        canvas.line(
            [at(step, i.mean) for step, i in enumerate(band, start=1)], fill=COLOURS[arm], width=3 * _SCALE
        )
    for number, (arm, band) in enumerate(bands.items()):
        x, y = _LEFT * _SCALE, (52 + 24 * number) * _SCALE
        canvas.line([(x, y), (x + 30 * _SCALE, y)], fill=COLOURS[arm], width=4 * _SCALE)
        _write(canvas, (x + 40 * _SCALE, y), f"{arm}: {band[-1]} at the end, {len(curves[arm])} seeds", "lm")
    _write(canvas, (_LEFT * _SCALE, 24 * _SCALE), title, "lm", size=17)
    _write(canvas, ((_LEFT + _RIGHT) / 2 * _SCALE, 597 * _SCALE), across, "mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.reduce(_SCALE).save(path, optimize=True)


def _write(
    canvas: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str, *, size: int = 14
) -> None:
    canvas.text(at, text, fill=_INK, font=ImageFont.load_default(size * _SCALE), anchor=anchor)
