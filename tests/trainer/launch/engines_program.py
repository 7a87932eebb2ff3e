"""Engine actors on a Ray cluster of this process's own, killed while they sample."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from runs import children

from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.rollout.engines import EngineError, Sampling
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.hf import HFEngine
from arpo.trainer.launch import Launcher, launcher_of
from arpo.trainer.launch.base import Plan
from arpo.trainer.progress import Reporter
from arpo.trainer.source import PolicySource
from policy_kit import MAX_PIXELS, MIN_PIXELS, fresh_policy, picture, tiny_folder


def configured() -> Config:
    return load_config(
        None,
        [
            "launcher.kind=ray", "launcher.engines=2", "launcher.max_restarts=1", "model.device=cpu",
            "model.dtype=float32", f"agent.min_pixels={MIN_PIXELS}", f"agent.max_pixels={MAX_PIXELS}",
        ],
    )  # fmt: skip


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[Launcher, Engine]]:
    config = configured()
    plan = Plan(config, PolicySource(str(tiny_folder()), weights=True))
    async with launcher_of(config, Reporter()) as launcher:
        policy = launcher.policy(plan)
        assert policy.device.type == "meta", "the driver holds no weights"
        async with launcher.engine(plan, policy) as engine:
            yield launcher, engine


def engine_pids() -> list[int]:
    """The engine actors below this process."""
    below = children(os.getpid())
    return sorted(p for p in below if Path(f"/proc/{p}/cmdline").read_bytes().startswith(b"ray::EngineActor"))


def main() -> None:
    policy = fresh_policy()
    shown = [picture(number) for number in range(3)]
    ids = policy.encoder.text_message("user", "Press the blue button.")
    for _ in shown:
        ids += policy.encoder.image_message(140, 84)[0]
    ids += policy.encoder.generation_prompt()

    def sampling(seed: int) -> Sampling:
        return Sampling(temperature=1.0, max_new_tokens=48, seed=seed)

    async def alone() -> list[list[int]]:
        engine = HFEngine(policy, 16, policy_version=5)
        try:
            return [(await engine.generate(ids, shown, sampling(seed))).token_ids for seed in range(12)]
        finally:
            await engine.close()

    async def on_ray() -> None:
        expected = await alone()
        async with two_engines() as (launcher, engine):

            async def ask() -> list[list[int]]:
                replies = await asyncio.gather(
                    *(engine.generate(ids, shown, sampling(seed)) for seed in range(12))
                )
                assert {reply.policy_version for reply in replies} == {5}
                return [reply.token_ids for reply in replies]

            weights = {name: p.detach() for name, p in policy.model.named_parameters()}
            await engine.push(weights, 5)
            assert engine.policy_version == 5
            assert await ask() == expected

            first, second = engine_pids()
            asking = asyncio.create_task(ask())
            await asyncio.sleep(0.02)
            os.kill(first, signal.SIGKILL)
            assert await asking == expected
            await engine.push(weights, 5)  # returns once the new actor has them too
            assert launcher.engine_restarts == 1

            os.kill(second, signal.SIGKILL)
            assert await ask() == expected, "the new actor samples with the pushed weights"

            with pytest.raises(EngineError, match="cannot be read") as caught:
                await engine.generate(ids, [b"no picture", *shown[1:]], sampling(0))
            assert "\n" not in str(caught.value)
            wrong = {name: tensor for name, tensor in weights.items() if "norm" not in name}
            with pytest.raises(EngineError, match="do not fit"):
                await engine.push(wrong, 6)
            assert engine.policy_version == 5

    asyncio.run(on_ray())


if __name__ == "__main__":
    main()
