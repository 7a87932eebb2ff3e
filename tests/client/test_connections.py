from __future__ import annotations

import asyncio

import httpx

from arpo.client.connections import POOLS, ShardedTransport


def test_a_session_keeps_its_pool_and_sessions_are_spread_over_all_of_them() -> None:
    async def story() -> None:
        async with ShardedTransport(httpx.Limits(max_connections=None)) as transport:
            ids = [f"0a1b2c3d.{number:016x}" for number in range(40 * POOLS)]
            taken = {}
            for session in ids:
                pools = {
                    transport._pool(f"/v1/sessions/{session}{rest}") for rest in ("", "/step", "/evaluate")
                }
                (taken[session],) = pools
            sizes = [list(taken.values()).count(pool) for pool in set(taken.values())]
            assert len(sizes) == POOLS
            assert max(sizes) < 3 * 40
            assert len({transport._pool("/v1/sessions") for _ in range(POOLS)}) == POOLS

    asyncio.run(story())
