"""Engines on the GPUs of learner ranks, all of them Ray actors, some of which die. Run by `test_vllm_engine.py`, with vLLM.

Without GPUs there is no memory to give away; who computes when, and who sends to whom, is the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

pytest.register_assert_rewrite("conformance", "vllm_on_ray")

from vllm_on_ray import Run, below_me, cores, killed_between, running  # noqa: E402


def test_colocated_engines_and_ranks_take_turns_whoever_dies(tmp_path: Path) -> None:
    async def work() -> None:
        colocated = (
            "engine.vllm.colocate=true",
            "learner.ranks=2",
            "launcher.engines=2",
            "launcher.cpus=0.5",
        )
        async with running(tmp_path, *colocated) as run:
            await in_turns(run)
            await killed_while_the_learner_works(run)
            assert run.said.times("object store") == 0, "no push went another way"
            await killed_between(run)

    asyncio.run(work())


async def in_turns(run: Run) -> None:
    for _ in range(2):
        asked = run.ask()
        await asyncio.sleep(0.3)
        await run.launcher.make_room()
        await run.teach()
        late = run.ask(1, 8)
        done, _ = await asyncio.wait({asked, late}, timeout=2)
        assert not done, "the learner has the GPUs"
        await run.publish()
        generations = await asked
        assert any(generation.pushes for generation in generations), "some hold tokens of both versions"
        assert {generation.policy_version for generation in await late} == {run.version}
    await run.all_new()


async def killed_while_the_learner_works(run: Run) -> None:
    """Each engine's successor begins when the learner has ended, and gets the new weights from its own rank."""
    for victim in sorted(await cores(run)):
        before = run.launcher.engine_restarts
        await run.launcher.make_room()
        os.kill(victim, signal.SIGKILL)
        asked = run.ask(1, 8)
        await run.teach()
        await asyncio.sleep(3)
        assert len(below_me("ray::EngineActor")) == 1, "the learner has the GPUs"
        await run.publish()
        assert {generation.policy_version for generation in await asked} == {run.version}
        await run.all_new()
        assert run.launcher.engine_restarts == before + 1
