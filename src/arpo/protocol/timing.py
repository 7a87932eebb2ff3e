"""What the env-server says about where an operation's time went: the `Server-Timing` header.

As https://www.w3.org/TR/server-timing/ has it: `act;dur=12.30;start=0.40, settle;dur=49.00;start=12.70`, in milliseconds.
`start` is ours, from the operation's beginning on; readers that do not know it leave it aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

HEADER = "Server-Timing"

_ENTRY = re.compile(r"([a-z_]+);dur=(\d+\.\d+);start=(\d+\.\d+)")


class Spent(NamedTuple):
    """A phase of an operation. start_s: since the operation began."""

    phase: str
    start_s: float
    seconds: float


def write_timing(phases: Iterable[Spent]) -> str:
    """The header's value; empty without phases."""
    return ", ".join(
        f"{one.phase};dur={one.seconds * 1000:.2f};start={max(0.0, one.start_s) * 1000:.2f}" for one in phases
    )


def read_timing(value: str) -> list[Spent]:
    """The phases in a header's value; what is of another form is left out."""
    return [
        Spent(name, float(start) / 1000, float(duration) / 1000)
        for name, duration, start in _ENTRY.findall(value)
    ]
