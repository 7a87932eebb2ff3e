"""What runs in the process of an engine that is a Ray actor: any `Engine`, and the pictures that it was sent.

Invariant: a request is answered by the engine, or by the names of the pictures that it lacks, and then it was not begun.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from arpo.rollout.engines.base import Engine, Generation, Sampling
from arpo.telemetry import export, names, tracing
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.factory import start_engine
from arpo.trainer.launch.packed import Packed, unpack
from arpo.trainer.launch.pictures import Lacking, Pictures

log = logging.getLogger(__name__)


class EngineActor:
    """An asynchronous actor. folder: of the driver, where relative paths begin, if this machine has it too."""

    def __init__(self, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._pictures = Pictures()
        self._engine: Engine | None = None

    async def start(self, plan: Plan) -> None:
        """Make the engine. Raises ConfigError or CheckpointError when it cannot be made."""
        export.begin(names.ENGINE, log.warning)
        self._engine = await start_engine(plan, None)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        pictures: Sequence[str],
        sent: Mapping[str, bytes],
        sampling: Sampling,
        traceparent: str | None = None,
    ) -> Generation | Lacking:
        """See `Engine.generate`. pictures: by sha256; sent: those that the caller thinks are not here. traceparent: of the
        caller's span.
        """
        tracing.adopt(traceparent)
        there = self._pictures.take(pictures, sent)
        if isinstance(there, Lacking):
            return there
        with tracing.span(names.ENGINE_GENERATE) as span:
            generation = await self._ready.generate(prompt_ids, there, sampling)
            span.set(names.POLICY_VERSION, generation.policy_version)
            span.set(names.TOKENS, len(generation.token_ids))
        return generation

    async def push(self, packed: Packed, version: int, traceparent: str | None = None) -> None:
        """See `Engine.push`. traceparent: of the caller's span."""
        tracing.adopt(traceparent)
        with tracing.span(names.ENGINE_PUSH, {names.POLICY_VERSION: version}):
            await self._ready.push(unpack(packed), version)

    @property
    def _ready(self) -> Engine:
        assert self._engine is not None  # noqa: S101 - the driver asks after start
        return self._engine
