"""Weights go from a learner rank straight to the workers of vLLM engines, all of them Ray actors, some of which die.

Run by `test_vllm_engine.py`, in an environment that has vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("conformance")

from conformance import TOLERANCE, Reference, make_prompts, sampling  # noqa: E402

sys.path.append(str(Path(__file__).parent.parent / "e2e"))

from runs import alive, children, wait_for  # noqa: E402

from arpo.config.load import load_config  # noqa: E402
from arpo.rollout.engines import Engine, Generation  # noqa: E402
from arpo.trainer.launch import RunLearner, launcher_of  # noqa: E402
from arpo.trainer.launch.base import Launcher, Plan  # noqa: E402
from arpo.trainer.progress import Reporter  # noqa: E402
from arpo.trainer.source import PolicySource  # noqa: E402
from policy_kit import MAX_PIXELS, MIN_PIXELS, Pictures, conversation, fresh_policy, tiny_folder  # noqa: E402

POLICY = fresh_policy(freeze_vision=False)
PROMPTS = make_prompts(POLICY)
TOKENS = 120
PUSH_S = 20.0


class Said(Reporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        print(f"[{time.monotonic() - BEGAN:6.1f} s] {message}", flush=True)
        self.lines.append(message)

    def times(self, words: str) -> int:
        return sum(words in line for line in self.lines)


BEGAN = time.monotonic()


@dataclass
class Run:
    """A launcher with its engine and learner. of: what transformers computes with the weights of a version."""

    launcher: Launcher
    engine: Engine
    learner: RunLearner
    said: Said
    version: int = -1
    of: dict[int, Reference] = field(default_factory=dict)

    async def teach(self) -> None:
        """Change the learner's weights; nobody is told."""
        pictures = Pictures()
        shown = [conversation(POLICY, pictures, [[5, 6, 7], [8, 9, self.version + 20]])]
        await asyncio.to_thread(self.learner.imitate_step, shown, pictures.__getitem__, 2e-2)

    async def publish(self) -> float:
        """Give the engines the learner's weights as the next version; returns how long it took."""
        import ray

        from arpo.trainer.launch.packed import unpack

        self.version += 1
        packed = await asyncio.to_thread(lambda: ray.get(self.learner.weights()))
        self.of[self.version] = Reference(POLICY).fill(unpack(packed))
        began = time.monotonic()
        await asyncio.wait_for(self.launcher.publish(self.version), 600)
        took = time.monotonic() - began
        self.said.say(f"version {self.version} published in {took:.2f} s")
        return took

    def ask(self, copies: int = 3, tokens: int = TOKENS) -> asyncio.Task[list[Generation]]:
        """All prompts, several times each."""

        async def replies() -> list[Generation]:
            requests = [prompt for prompt in PROMPTS for _ in range(copies)]
            asked = [
                self.engine.generate(*prompt, sampling(number, max_new_tokens=tokens))
                for number, prompt in enumerate(requests)
            ]
            generations = await asyncio.gather(*asked)
            for prompt, generation in zip(requests, generations, strict=True):
                self.check(prompt, generation)
            return generations

        return asyncio.create_task(replies())

    def check(self, prompt: Any, generation: Generation) -> None:
        """Every token has the log-prob that it has under the version that it names."""
        import torch

        size = len(generation.token_ids)
        starts = [(0, generation.policy_version), *generation.pushes, (size, -1)]
        for (start, version), (end, _) in pairwise(starts):
            expected = self.of[version].logprobs(prompt, generation.token_ids)[start:end]
            difference = (torch.tensor(generation.logprobs[start:end]) - expected).abs().max()
            assert difference < TOLERANCE, (starts, version)

    async def all_new(self) -> None:
        """Whoever is asked now samples with the newest version, on every engine."""
        for generation in await self.ask(4, 8):
            assert (generation.policy_version, generation.pushes) == (self.version, ())


@contextlib.asynccontextmanager
async def running(folder: Path, *options: str) -> AsyncIterator[Run]:
    config = load_config(
        None,
        [
            "launcher.kind=ray", "model.device=cpu", "model.dtype=float32", "engine.kind=vllm",
            f"agent.min_pixels={MIN_PIXELS}", f"agent.max_pixels={MAX_PIXELS}", "model.freeze_vision=false",
            "engine.vllm.enforce_eager=true", "engine.vllm.kv_cache_gib=0.25", "engine.vllm.mm_cache_gib=0.1",
            f"run.dir={folder}", "run.name=push", f"engine.vllm.push_timeout_s={PUSH_S}", *options,
        ],
    )  # fmt: skip
    (folder / "push").mkdir(parents=True, exist_ok=True)
    plan = Plan(config, PolicySource(str(tiny_folder()), weights=True))
    said = Said()
    async with launcher_of(config, said) as launcher:
        policy = launcher.policy(plan)
        async with launcher.engine(plan, policy) as engine, launcher.learner(plan, policy) as learner:
            run = Run(launcher, engine, learner, said)
            await run.publish()
            await run.all_new()
            yield run


def below_me(*programs: str) -> list[int]:
    """Processes below this one whose command lines begin so."""
    found = []
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(programs):
                found.append(pid)
    return sorted(found)


def test_weights_go_straight_to_the_workers_whoever_dies(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, "learner.ranks=1", "launcher.engines=2") as run:
            await amid_replies(run)
            await killed_during(run)
            await silent(run)
            await killed_between(run)
            assert run.said.times("object store") == 0, "no push went another way"

    asyncio.run(work())


def test_where_the_transfer_cannot_be_made_weights_come_through_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 speaks NCCL here, of which the workers of a CPU know nothing."""
    from ray import cloudpickle

    from arpo.trainer.launch import ray_ranks

    class Foreign(ray_ranks.RankActor):
        def join(self, *arguments: Any) -> None:
            super().join(*arguments)
            self._sending._method = "nccl"

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray_ranks, "RankActor", Foreign)

    async def work() -> None:
        async with running(tmp_path, "learner.ranks=1") as run:
            asked = run.ask()
            await run.teach()
            await run.publish()
            await asked
            await run.all_new()
            assert run.said.times("engine 0 gets its weights through the object store from now on") == 1
            assert run.launcher.engine_restarts == 0

    asyncio.run(work())


async def amid_replies(run: Run) -> None:
    asked = run.ask()
    for _ in range(3):
        await run.teach()
        await run.publish()
    generations = await asked
    assert any(generation.pushes for generation in generations), "some hold tokens of several versions"
    await run.all_new()


async def both_there(run: Run) -> None:
    """Requests are spread over two engines again."""
    for place in run.engine._places:
        await asyncio.wait_for(place.ready.wait(), 400)


async def killed_between(run: Run) -> None:
    """The successor takes what was published, though the learner has gone on since."""
    before = run.launcher.engine_restarts
    victim = next(iter(await cores(run)))
    await run.teach()
    asked = run.ask()
    os.kill(victim, signal.SIGKILL)
    await asked
    await both_there(run)
    await run.all_new()
    assert run.launcher.engine_restarts == before + 1


async def cores(run: Run) -> dict[int, int]:
    """vLLM's core by the actor that it belongs to."""
    found: dict[int, int] = {}

    def both() -> bool:
        found.clear()
        all_cores = set(below_me("VLLM::EngineCore"))
        for actor in below_me("ray::EngineActor"):
            found.update((actor, pid) for pid in children(actor) if pid in all_cores)
        return len(found) == 2

    await asyncio.to_thread(wait_for, both, 60)
    return found


async def killed_during(run: Run) -> None:
    """It stands still while the push waits for it, so it is killed in the midst of it."""
    before = run.launcher.engine_restarts
    await run.teach()
    victim, core = next(iter((await cores(run)).items()))
    os.kill(core, signal.SIGSTOP)
    publishing = asyncio.create_task(run.publish())
    asked = run.ask()
    await asyncio.sleep(3)
    assert not publishing.done()
    os.kill(victim, signal.SIGKILL)
    await publishing
    await asked
    await run.all_new()
    assert run.launcher.engine_restarts == before + 1
    await asyncio.to_thread(wait_for, lambda: not alive([core]), 30)


async def silent(run: Run) -> None:
    """A core that stands still for ever is replaced after the time that a push may take."""
    before = run.launcher.engine_restarts
    await run.teach()
    core = next(iter((await cores(run)).values()))
    os.kill(core, signal.SIGSTOP)
    took = await run.publish()
    assert took > PUSH_S
    await run.all_new()
    assert run.launcher.engine_restarts == before + 1
    await asyncio.to_thread(wait_for, lambda: not alive([core]), 30)
