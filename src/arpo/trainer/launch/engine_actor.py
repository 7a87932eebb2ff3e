"""What runs in the process of an engine that is a Ray actor: any `Engine`, and the pictures that it was sent.

Invariant: a request is answered by the engine, or by the names of the pictures that it lacks, and then it was not begun.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from arpo.rollout.engines.base import Engine, Generation, Sampling
from arpo.rollout.engines.vllm import VllmEngine
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

    async def pause(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """See `VllmEngine.pause`; so are the two that follow. A learner rank calls them, to send weights itself."""
        await self._vllm.pause(shapes)

    async def control(self, call: str, arguments: Mapping[str, Any]) -> None:
        """See `VllmEngine.control`."""
        await self._vllm.control(call, arguments)

    async def resume(self, version: int) -> None:
        """See `VllmEngine.resume`."""
        await self._vllm.resume(version)

    async def sleep(self) -> None:
        """See `VllmEngine.sleep`."""
        await self._vllm.sleep()

    async def wake(self) -> None:
        """See `VllmEngine.wake`."""
        await self._vllm.wake()

    @property
    def _ready(self) -> Engine:
        assert self._engine is not None  # noqa: S101 - the driver asks after start
        return self._engine

    @property
    def _vllm(self) -> VllmEngine:
        assert isinstance(self._engine, VllmEngine)  # noqa: S101 - nobody sends to another kind
        return self._engine
