"""An episode that is cancelled leaves no session, wherever it was; the server need not wait for silence."""

from __future__ import annotations

import asyncio
import random

import pytest
from fault_proxy import Link, fault_proxy
from scripted_desktop import TASK, TOKEN, Script, env_server

from arpo.client import ClientTimeouts, EnvClient
from arpo.protocol.actions import Click
from arpo.protocol.messages import SessionOptions

DESKTOPS = 4
ROUNDS = 20
# Long enough to be of no help here.
OPTIONS = SessionOptions(idle_timeout_s=600)


async def episode(client: EnvClient) -> None:
    async with await client.open_session(TASK, OPTIONS) as session:
        for _ in range(2):
            await session.step([Click(x=1, y=1)])
        await session.evaluate()


def test_cancelling_at_any_moment_frees_every_desktop(tmp_path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)

    def short_work(desktop) -> object:
        return asyncio.sleep(chance.uniform(0, 0.03))

    async def score() -> float:
        await asyncio.sleep(chance.uniform(0, 0.03))
        return 1.0

    async def main() -> None:
        script = Script(reset=short_work, execute=short_work, evaluate=lambda desktop: score())
        link = Link(latency_s=0.01)
        async with (
            env_server(tmp_path, script, capacity=DESKTOPS) as server,
            fault_proxy(server.url, up=link, down=Link(latency_s=0.01)) as proxy,
            EnvClient(proxy.url, TOKEN, timeouts=ClientTimeouts(poll_s=0.05)) as client,
        ):
            await server.client.wait_ready(10)
            finished = 0
            for _ in range(ROUNDS):
                # More episodes than desktops: some are cancelled while they wait for one.
                running = [asyncio.create_task(episode(client)) for _ in range(DESKTOPS + 2)]
                for task in running:
                    await asyncio.sleep(chance.uniform(0, 0.1))
                    task.cancel()
                outcomes = await asyncio.gather(*running, return_exceptions=True)
                finished += outcomes.count(None)
                assert all(
                    outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes
                )
            assert finished < ROUNDS * (DESKTOPS + 2)
            async with asyncio.timeout(20):
                while (await server.client.capacity()).free < DESKTOPS:
                    await asyncio.sleep(0.02)
            assert (await server.client.capacity()).busy == 0

    asyncio.run(main())


@pytest.mark.parametrize("place", ["create", "reset", "step", "evaluate", "release"])
def test_cancelling_twice_does_not_stop_the_release(tmp_path, place: str) -> None:
    """The second one comes while the first one's release is on its way."""
    reached = asyncio.Event()

    async def main() -> None:
        async def stay() -> float:
            reached.set()
            await asyncio.sleep(60)
            return 1.0

        script = Script(
            reset=lambda desktop: stay() if place == "reset" else None,
            execute=lambda desktop: stay() if place == "step" else None,
            evaluate=lambda desktop: stay() if place == "evaluate" else 1.0,
        )
        async with (
            env_server(tmp_path, script) as server,
            fault_proxy(server.url, up=Link(latency_s=0.1), down=Link(latency_s=0.1)) as proxy,
            EnvClient(proxy.url, TOKEN) as client,
        ):
            await server.client.wait_ready(10)
            task = asyncio.create_task(episode(client))
            wanted = {
                "create": "POST /v1/sessions",
                "reset": "GET /v1/sessions/{id}",
                "step": "POST /v1/sessions/{id}/step",
                "evaluate": "POST /v1/sessions/{id}/evaluate",
                "release": "DELETE /v1/sessions/{id}",
            }[place]
            async with asyncio.timeout(20):
                while not proxy.requests[wanted]:
                    await asyncio.sleep(0.005)
                if place not in ("create", "release"):
                    await reached.wait()
                for _ in range(2):
                    task.cancel()
                    await asyncio.sleep(0.02)
                with pytest.raises(asyncio.CancelledError):
                    await task
                while (await server.client.capacity()).free == 0:
                    await asyncio.sleep(0.02)

    asyncio.run(main())
