"""Does a run fit into its machine, and if not, which settings make it fit?

Invariant: a setting is proposed only when the same prediction says that the run then fits, and that nothing else is
wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from arpo.config.model import Config
from arpo.trainer.checks import check, row_tokens
from arpo.trainer.memory import GIB, Prediction, predict, ranks_of
from arpo.trainer.shapes import ModelShape

_CONTEXT_GIB = 1.5
"""Of a GPU: the CUDA context, NCCL's buffers, the libraries' workspaces."""
_FRAGMENTATION = 0.08
"""Of a GPU: what the allocator cannot use between its blocks."""
_FEWEST_TOKENS = 256  # steps in which a shorter row is looked for
_CHUNK = 256
_LORA_RANK = 32

Knob = Callable[[Config], Iterator[dict[str, Any]]]
"""Settings by dotted key that need less memory, the mildest first."""


@dataclass(frozen=True)
class Fit:
    """A prediction beside what there is. limit: GiB of one GPU, or of the host; usable: without what is set aside."""

    prediction: Prediction
    limit: float
    usable: float
    where: str

    @property
    def gib(self) -> float:
        """Predicted peak in that memory; on the CPU all ranks share it."""
        return self.prediction.peak.total / GIB

    @property
    def ok(self) -> bool:
        """It fits."""
        return self.gib <= self.usable

    def largest(self, number: int = 4) -> str:
        """The largest parts at the worst moment: `weights 8.2, activations 6.1`."""
        parts = sorted(self.prediction.peak.parts.items(), key=lambda part: -part[1])[:number]
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)


def fit(config: Config, shape: ModelShape) -> Fit:
    """Compare with `hardware.gpu_memory_gib`, or with this machine's memory where the run uses no GPU.

    Raises ValueError for a screen that no policy can be shown.
    """
    if config.hardware.gpus:
        limit = float(config.hardware.gpu_memory_gib)
        usable = limit * (1 - _FRAGMENTATION) - _CONTEXT_GIB
        return Fit(predict(config, shape), limit, usable, "a GPU")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Fit(_together(config, shape), total, total, "this machine")
