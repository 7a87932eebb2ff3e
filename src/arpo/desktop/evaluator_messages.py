"""What the env-server and its evaluator processes say to each other.

A frame is a length (`LENGTH`) and a pickle: an `Order` one way, an `Answer` or a `Failure` the other.

Invariant: what comes back is plain data. The process reads files that an agent made, so the env-server unpickles nothing
of it but these classes and Python's own data types (`read_reply`).
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass, field
from typing import Any

from arpo.desktop.addresses import AddressPolicy

LENGTH = struct.Struct(">I")
MAX_REPLY_BYTES = 16 * 2**20
"""Larger replies are an error: the env-server holds them in memory."""
MAX_REPLY_VALUES = 250_000
"""So are those of more values, which take long to read though they have few bytes."""


@dataclass(frozen=True)
class MetricCall:
    """Compute a metric.

    cache_dir: the folder whose files it may read and write; none when empty.
    """

    name: str
    arguments: tuple[object, ...]
    options: dict[str, Any]
    cache_dir: str = ""


@dataclass(frozen=True)
class GuestView:
    """What OSWorld's getters may know of a guest.

    server, chromium, vlc: `host:port`, or None. files: path in the guest → copy on this host, None when the guest
    has no such file; asked before the guest is.
    """

    cache_dir: str
    screen: tuple[int, int]
    server: str | None = None
    chromium: str | None = None
    vlc: str | None = None
    files: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GetterCall:
    """Ask a getter."""

    kind: str
    config: dict[str, Any]
    guest: GuestView


@dataclass(frozen=True)
class Order:
    """A call and what it may touch of this host.

    allow: the addresses that it may reach besides the guest's. any_program: whether it may start any program.
    """

    call: MetricCall | GetterCall
    allow: AddressPolicy
    any_program: bool = False


@dataclass(frozen=True)
class Answer:
    """What the call returned: plain data."""

    value: object


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    missing_file: it raised FileNotFoundError, which OSWorld scores as 0 in a getter. refused: it tried what it may not.
    """

    reason: str
    missing_file: bool = False
    refused: bool = False


def read_reply(data: bytes) -> Answer | Failure:
    """The reply in a frame. Raises pickle.UnpicklingError when it holds anything but plain data."""
    reply = _PlainUnpickler(io.BytesIO(data)).load()
    if not isinstance(reply, Answer | Failure):
        raise pickle.UnpicklingError(f"a reply is no {type(reply).__name__}")
    return reply


_PLAIN = {
    (Answer.__module__, "Answer"),
    (Failure.__module__, "Failure"),
    *(("builtins", name) for name in ("bytearray", "complex", "frozenset", "set")),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is not plain data")
        return super().find_class(module, name)
