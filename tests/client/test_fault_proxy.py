"""The proxy that other tests trust does to requests what its faults say, and its link has the speed that it says."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from fault_proxy import Link, NetFault, RandomFaults, fault_proxy

BODY = bytes(range(256)) * 200


class Echo:
    """An HTTP server that counts the requests it acts on and answers with `BODY`."""

    def __init__(self) -> None:
        self.acted = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                self.acted += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        except asyncio.IncompleteReadError:
            writer.close()


@asynccontextmanager
async def through_proxy(**options):
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with (
        fault_proxy(f"http://{host}:{port}", **options) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=0.5, trust_env=False) as client,
    ):
        yield echo, proxy, client
    server.close()


# fault → what the client sees, and whether the server has acted by then
FAULTS = {
    NetFault.DELAY: (None, True),
    NetFault.LOSE_REQUEST: (httpx.RemoteProtocolError, False),
    NetFault.LATE_REQUEST: (httpx.RemoteProtocolError, False),
    NetFault.LOSE_REPLY: (httpx.RemoteProtocolError, True),
    NetFault.CUT_REPLY: (httpx.RemoteProtocolError, True),
    NetFault.RESET_BEFORE: (httpx.ReadError, False),
    NetFault.RESET_AFTER: (httpx.ReadError, True),
    NetFault.THROTTLE: (None, True),
    NetFault.SWALLOW: (httpx.ReadTimeout, False),
    NetFault.STALL: (httpx.ReadTimeout, True),
    NetFault.BAD_GATEWAY: (None, False),
}


@pytest.mark.parametrize("fault", NetFault)
def test_a_fault_hits_one_request_as_it_says(fault: NetFault) -> None:
    async def main() -> None:
        async with through_proxy(delay_s=0.2, throttle_bytes_per_s=200_000) as (echo, proxy, client):
            assert (await client.post("/before", content=b"x")).content == BODY
            proxy.queue.append(fault)
            error, acted = FAULTS[fault]
            if error is None:
                answer = await client.post("/x", content=b"x")
                assert answer.status_code == (502 if fault is NetFault.BAD_GATEWAY else 200)
            else:
                with pytest.raises(error):
                    await client.post("/x", content=b"x")
            assert echo.acted == 1 + acted
            assert (await client.post("/after", content=b"x")).content == BODY
            await asyncio.sleep(0.4 if fault is NetFault.LATE_REQUEST else 0)
            assert echo.acted == 2 + (acted or fault is NetFault.LATE_REQUEST)
            assert dict(proxy.faults) == {fault: 1}

    asyncio.run(main())


def test_a_link_takes_the_time_of_its_bytes_and_its_distance_and_counts_them() -> None:
    async def main() -> None:
        link = Link(bytes_per_s=200_000, latency_s=0.05)
        async with through_proxy(up=link, down=replace(link)) as (_, proxy, client):
            begun = time.monotonic()
            # Two at a time share the line.
            await asyncio.gather(*(client.post("/x", content=b"x") for _ in range(2)))
            took_s = time.monotonic() - begun
            # A handshake there and back, the requests there, two replies back one after the other.
            assert took_s > 4 * 0.05 + 2 * len(BODY) / 200_000
            assert 2 * len(BODY) < proxy.down.bytes < 2 * len(BODY) + 1000
            assert 0 < proxy.up.bytes < 1000

    asyncio.run(main())


def test_a_proxy_that_refuses_can_listen_again_at_the_same_address() -> None:
    async def main() -> None:
        async with through_proxy() as (_, proxy, client):
            await proxy.refuse()
            with pytest.raises(httpx.ConnectError):
                await client.post("/x", content=b"x")
            await proxy.listen()
            assert (await client.post("/x", content=b"x")).status_code == 200

    asyncio.run(main())


def test_the_same_seed_gives_the_same_faults() -> None:
    first, second, other = (RandomFaults(seed, 0.5) for seed in (1, 1, 2))
    drawn = [first(None) for _ in range(100)]
    assert drawn == [second(None) for _ in range(100)]
    assert drawn != [other(None) for _ in range(100)]
    assert 20 < sum(fault is not None for fault in drawn) < 80
