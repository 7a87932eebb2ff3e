"""Pictures that were sent once and are named by their sha256 from then on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lacking:
    """Pictures that must be sent, by sha256."""

    names: Sequence[str]


class Pictures:
    """The latest pictures by content; the one that was used longest ago leaves first. limit: bytes."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def take(self, wanted: Sequence[str], sent: Mapping[str, bytes]) -> list[bytes] | Lacking:
        """The pictures of a prompt in their order, those sent with it included, or which are lacking."""
        lacking = sorted({name for name in wanted if name not in sent and name not in self._kept})
        if lacking:
            return Lacking(lacking)
        pictures = [sent[name] if name in sent else self._kept[name] for name in wanted]
        for name, data in zip(wanted, pictures, strict=True):
            if name not in self._kept:
                self._bytes += len(data)
            self._kept[name] = data
            self._kept.move_to_end(name)
        while self._bytes > self._limit:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return pictures
