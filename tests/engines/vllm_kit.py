"""Starts vLLM engines small enough for a test."""

import asyncio
import os
import time
from contextlib import contextmanager

import pytest
from conformance import MAX_BATCH, MAX_IMAGES

from arpo.config.sections import VllmSection
from arpo.rollout.engines.vllm import VllmEngine
from policy_kit import MAX_PIXELS, MIN_PIXELS

ROW_TOKENS = 1024


@contextmanager
def vllm_engine(folder, *, weights=True, **options):
    environment = pytest.MonkeyPatch()
    section = VllmSection(enforce_eager=True, kv_cache_gib=0.25, mm_cache_gib=0.1, **options)
    if section.tensor_parallel > 1:
        # a core each; vLLM itself wants a NUMA node each
        cores = sorted(os.sched_getaffinity(0))
        bound = "|".join(str(cores[rank % len(cores)]) for rank in range(section.tensor_parallel))
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", bound)
    began = time.monotonic()
    engine = VllmEngine(
        str(folder),
        section,
        dtype="float32",
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        max_images=MAX_IMAGES,
        max_batch=MAX_BATCH,
        row_tokens=ROW_TOKENS,
        weights=weights,
    )
    print(f"started in {time.monotonic() - began:.1f} s")
    try:
        yield engine
    finally:
        asyncio.run(engine.close())
        environment.undo()
