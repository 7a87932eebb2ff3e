"""Does a run fit into its machine, and if not, which settings make it fit?

Invariant: settings are proposed only when the same prediction says that the run then fits, and nothing else is wrong
with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rich.table import Table

from arpo.config.model import Config
from arpo.protocol.problems import ConfigError
from arpo.trainer.checks import check, row_tokens
from arpo.trainer.memory import GIB, Moment, Prediction, predict
from arpo.trainer.shapes import ModelShape, model_shape

_CONTEXT_GIB = 1.5
"""Of a GPU, set aside: CUDA's context, NCCL's buffers, workspaces of the libraries."""
_FRAGMENTATION = 0.08
"""Share of a GPU, set aside: what the allocator loses between its blocks."""
_GRAIN = 1024  # a shorter row is a multiple of it
_SMALL_CHUNK = 256
_LORA_RANK = 32
_MOST_GPUS = 8  # of one machine

Changes = dict[str, Any]
"""Settings by dotted key."""


@dataclass(frozen=True)
class Fit:
    """A prediction and the memory it is for. needed, limit: GiB; usable: of the limit, without what is set aside."""

    prediction: Prediction
    needed: float
    limit: float
    usable: float

    @property
    def ok(self) -> bool:
        """The worst moment has room."""
        return self.needed <= self.usable


def gib(size: float) -> str:
    """Bytes in GiB, one decimal; two below a tenth."""
    value = size / GIB
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2g}"


def largest(moment: Moment, number: int = 4) -> str:
    """The largest parts of a moment, in GiB: `weights 8.2, activations 6.1`."""
    parts = sorted(moment.parts.items(), key=lambda part: -part[1])[:number]
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size)


def fit(config: Config, shape: ModelShape) -> Fit:
    """Compare with `hardware.gpu_memory_gib`, or without GPUs with the memory of this machine, which all ranks share.

    Raises ValueError for a screen that no policy can be shown.
    """
    prediction = predict(config, shape)
    needed = prediction.peak.total
    if config.hardware.gpus:
        limit = float(config.hardware.gpu_memory_gib)
        return Fit(prediction, needed / GIB, limit, limit * (1 - _FRAGMENTATION) - _CONTEXT_GIB)
    followers = config.learner_ranks - 1
    needed += followers * predict(config, shape, leader=False).peak.total if followers else 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Fit(prediction, needed / GIB, total, total)


def check_memory(config: Config) -> str:
    """What the run needs, in words. Raises ConfigError when that cannot fit, with settings that do."""
    shape = model_shape(config.model.path)
    if shape is None:
        return f"not predicted: the shape of {config.model.path} is not known before it is there"
    try:
        found = fit(config, shape)
    except ValueError:
        return "not predicted: no policy can be shown this env.screen"
    gpus = config.hardware.gpus
    peak = found.prediction.peak
    needed = f"{found.needed:.0f}" if found.needed >= 10 else gib(found.needed * GIB)
    if found.ok:
        where = "a GPU" if gpus else "this machine"
        return f"about {needed} of {found.limit:.0f} GiB of {where}: {largest(peak)}"
    limit = f"hardware.gpu_memory_gib={found.limit:.0f}" if gpus else f"this machine's {found.limit:.0f}"
    raise ConfigError(
        f"{config.model.path} needs about {needed} GiB at its worst moment ({peak.name}) and {found.usable:.0f} of "
        f"{limit} can be used: {largest(peak)}; fix: {_fix(config, shape)}"
    )


def _fix(config: Config, shape: ModelShape) -> str:
    changes = proposal(config, shape)
    if not changes:
        return "a smaller model, fewer rollout.max_steps or a smaller agent.max_pixels"
    fix = " ".join(f"{key}={_shown(value)}" for key, value in changes.items())
    ranks, host = (
        _changed(config, changes).learner_ranks,
        fit(_changed(config, changes), shape).prediction.host,
    )
    return f"{fix} (with {gib(host * ranks)} GiB of the host's memory)" if host else fix


def memory_table(config: Config) -> Table | None:
    """What rank 0 is predicted to hold at each moment of a step; None when nothing can be predicted."""
    shape = model_shape(config.model.path)
    if shape is None:
        return None
    try:
        prediction = predict(config, shape)
    except ValueError:
        return None
    table = Table("moment", "GiB", "of which", title=f"{config.model.path}: rank 0 of {config.learner_ranks}")
    for moment in prediction.moments:
        style = "bold" if moment is prediction.peak else ""
        table.add_row(moment.name, gib(moment.total), largest(moment, len(moment.parts)), style=style)
    if prediction.host:
        table.add_row("host memory", gib(prediction.host), "learner.cpu_offload, of each rank")
    return table


def proposal(config: Config, shape: ModelShape) -> Changes:
    """The first single change, else the first pair or more, with which the run fits; empty when there is none.

    In the order of what they cost: time, rounding, machines, what is trained. Each goes no further than it must.
    """
    knobs = list(_knobs(config))
    for number in range(1, len(knobs) + 1):
        for chosen in combinations(knobs, number):
            taken = [candidates[-1] for candidates in chosen]
            if not _works(config, taken, shape):
                continue
            for place, candidates in enumerate(chosen):
                others = taken[place + 1 :]
                taken[place] = next(
                    c for c in candidates if _works(config, [*taken[:place], c, *others], shape)
                )
            return _merged(taken)
    return {}


def _knobs(config: Config) -> Iterator[list[Changes]]:
    """What could be changed: for each setting its candidates, each needing less memory than the one before."""
    learner, model, gpus = config.learner, config.model, config.hardware.gpus
    if not model.gradient_checkpointing:
        yield [{"model.gradient_checkpointing": True}]
    if learner.logits_chunk > _SMALL_CHUNK:
        yield [{"learner.logits_chunk": _SMALL_CHUNK}]
    # a whole episode still fits into a row
    shortest = -(-row_tokens(config, config.rollout.max_steps) // _GRAIN) * _GRAIN
    if learner.max_row_tokens > shortest:
        lengths = range((learner.max_row_tokens - 1) // _GRAIN * _GRAIN, shortest - 1, -_GRAIN)
        yield [{"learner.max_row_tokens": length} for length in lengths]
    batch = min(config.engine.max_batch, config.env.desktops)
    if batch > 1:
        halved = [batch >> k for k in range(1, batch.bit_length())]
        yield [{"engine.max_batch": size} for size in halved]
    if learner.weights != "kahan" and model.dtype == "bfloat16" and not model.lora.rank:
        yield [{"learner.weights": "kahan"}]
    if gpus and config.learner_ranks < gpus:
        yield [{"learner.ranks": gpus}]
    if 0 < gpus < _MOST_GPUS:
        yield [
            {"hardware.gpus": number} | ({"learner.ranks": number} if learner.ranks else {})
            for number in range(gpus + 1, _MOST_GPUS + 1)
        ]
    if gpus and not learner.cpu_offload:
        yield [{"learner.cpu_offload": True}]
    if not model.lora.rank:
        yield [
            {"model.lora.rank": _LORA_RANK} | ({} if model.freeze_vision else {"model.freeze_vision": True})
        ]


def _merged(taken: Sequence[Changes]) -> Changes:
    return {key: value for changes in taken for key, value in changes.items()}


def _works(config: Config, taken: Sequence[Changes], shape: ModelShape) -> bool:
    changed = _changed(config, _merged(taken))
    return fit(changed, shape).ok and set(check(changed)) <= set(check(config))


def _changed(config: Config, changes: Changes) -> Config:
    document = config.model_dump()
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[name] = value
    return Config.model_validate(document)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
