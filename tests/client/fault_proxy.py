"""A TCP proxy that treats HTTP/1.1 requests as bad networks do, one fault a request, and a link of a given speed.

It reads a request whole, chooses a fault for it, and forwards it and its reply accordingly, so a fault hits exactly
one request also on a kept-alive connection. Bodies need a Content-Length (as httpx and uvicorn send them).

    async with fault_proxy(server.url) as proxy:                        # as fast as the machine
        proxy.queue += [NetFault.LOSE_REPLY, None, NetFault.RESET_BEFORE]     # for the next three requests
    link = Link(bytes_per_s=20e6 / 8, latency_s=0.025)                  # 20 Mbit/s, 50 ms there and back
    async with fault_proxy(server.url, up=link, down=replace(link)) as proxy: ...
    async with fault_proxy(server.url, choose=RandomFaults(seed, 0.3)) as proxy: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

CHUNK = 16 * 1024
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\nno!"


class NetFault(Enum):
    """What happens to one request and its reply."""

    DELAY = "delay"
    """The request is held back for a while, then the reply is."""
    LOSE_REQUEST = "lose the request"
    """The connection ends before the request reaches the server."""
    LATE_REQUEST = "deliver the request late"
    """The connection ends; the request reaches the server a while later, when its sender may have repeated it."""
    LOSE_REPLY = "lose the reply"
    """The server acted; the connection ends before its reply."""
    CUT_REPLY = "cut the reply"
    """The server acted; the connection ends in the middle of its reply."""
    RESET_BEFORE = "reset before the request is forwarded"
    """A TCP reset (SO_LINGER 0) instead of an orderly end; the server never hears of it."""
    RESET_AFTER = "reset after the server acted"
    """A TCP reset instead of the reply."""
    THROTTLE = "throttle"
    """The reply trickles in at `throttle_bytes_per_s`."""
    SWALLOW = "swallow the request"
    """A black hole: the connection stays, the request does not reach the server, no answer ever comes."""
    STALL = "stall in the middle of the reply"
    """The server acted, half of the reply comes, then nothing more does; the connection stays."""
    BAD_GATEWAY = "502 of a gateway"
    """A gateway answers that the server did not; the server never hears of it."""


@dataclass(frozen=True)
class Request:
    """A request as the proxy read it."""

    method: str
    path: str
    content: bytes


@dataclass
class Link:
    """One direction of the network, shared by all connections: what is sent waits for what was sent before.

    bytes_per_s: its rate, None for unlimited. latency_s: how long a byte travels. bytes: what went through so far.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0
    bytes: int = 0
    _busy_until: float = 0.0

    async def carry(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Send bytes; returns when the last one has arrived."""
        loop = asyncio.get_running_loop()
        chunk = CHUNK if self.bytes_per_s else max(1, len(data))
        for start in range(0, len(data), chunk):
            piece = data[start : start + chunk]
            self.bytes += len(piece)
            if self.bytes_per_s:
                begun = max(loop.time(), self._busy_until)
                self._busy_until = begun + len(piece) / self.bytes_per_s
                await asyncio.sleep(self._busy_until - loop.time())
            if self.latency_s:
                # The next piece is sent while this one travels.
                loop.call_later(self.latency_s, _write, writer, piece)
            else:
                _write(writer, piece)
        await asyncio.sleep(self.latency_s)
        await writer.drain()


Choose = Callable[[Request], NetFault | None]


@dataclass
class RandomFaults:
    """Gives a share of all requests a fault, the same ones for the same seed and order of requests."""

    seed: int
    share: float
    kinds: Iterable[NetFault] = tuple(NetFault)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._kinds = list(self.kinds)

    def __call__(self, request: Request) -> NetFault | None:
        return self._random.choice(self._kinds) if self._random.random() < self.share else None


@dataclass
class FaultProxy:
    """Use `fault_proxy`. queue: faults for the next requests, ahead of `choose`.

    connections, requests, faults: what was seen and done so far. delay_s: of DELAY and LATE_REQUEST.
    """

    target: str
    choose: Choose
    up: Link
    down: Link
    delay_s: float
    throttle_bytes_per_s: float
    queue: deque[NetFault | None] = field(default_factory=deque)
    connections: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[NetFault] = field(default_factory=Counter)
    url: str = ""
    _port: int = 0
    _listener: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def refuse(self) -> None:
        """Refuse connections from now on and reset those there are, until `listen`."""
        if self._listener is not None:
            self._listener.close()
        for writer in list(self._open):
            _reset(writer)

    async def close(self) -> None:
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._open.add(writer)
        self.connections += 1
        server = _Server(self.target)
        try:
            # The handshake: a round trip before the first byte.
            await asyncio.sleep(self.up.latency_s + self.down.latency_s)
            while (message := await _message(reader)) is not None:
                if not await self._exchange(message, server, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            # The proxy is being closed; asyncio would log a cancelled handler as an error.
            pass
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            server.close()
            writer.close()

    async def _exchange(
        self,
        message: bytes,
        server: _Server,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
    ) -> bool:
        """One request. False: the connection ends."""
        request = _parsed(message)
        self.requests[f"{request.method} {_shape(request.path)}"] += 1
        fault = self.queue.popleft() if self.queue else self.choose(request)
        if fault is not None:
            self.faults[fault] += 1
        if fault is NetFault.LOSE_REQUEST:
            return False
        if fault is NetFault.RESET_BEFORE:
            _reset(client)
            return False
        if fault is NetFault.LATE_REQUEST:
            self._deliver_later(message)
            return False
        if fault is NetFault.SWALLOW:
            await reader.read()
            return False
        if fault is NetFault.BAD_GATEWAY:
            await self.down.carry(BAD_GATEWAY, client)
            return True
        if fault is NetFault.DELAY:
            await asyncio.sleep(self.delay_s)
        reply = await _unless_gone(server.ask(message, self.up), reader)
        if fault is NetFault.DELAY:
            await asyncio.sleep(self.delay_s)
        if fault is NetFault.LOSE_REPLY:
            return False
        if fault is NetFault.RESET_AFTER:
            _reset(client)
            return False
        if fault in (NetFault.CUT_REPLY, NetFault.STALL):
            await self.down.carry(reply[: len(reply) // 2], client)
            if fault is NetFault.STALL:
                await reader.read()
            return False
        if fault is NetFault.THROTTLE:
            await self._trickle(reply, client)
            return True
        await self.down.carry(reply, client)
        return True

    def _deliver_later(self, message: bytes) -> None:
        async def deliver() -> None:
            server = _Server(self.target)
            await asyncio.sleep(self.delay_s)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await server.ask(message, self.up)
            server.close()

        task = asyncio.create_task(deliver())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _trickle(self, reply: bytes, client: asyncio.StreamWriter) -> None:
        pause_s = 0.02
        piece = max(1, int(self.throttle_bytes_per_s * pause_s))
        for start in range(0, len(reply), piece):
            await asyncio.sleep(pause_s)
            await self.down.carry(reply[start : start + piece], client)


class _Server:
    """The proxy's own connection to the server, made when it is first needed."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, message: bytes, up: Link) -> bytes:
        if self._ends is None:
            self._ends = await asyncio.open_connection(self._target.hostname, self._target.port)
        reader, writer = self._ends
        await up.carry(message, writer)
        reply = await _message(reader)
        if reply is None:
            raise ConnectionResetError("the server hung up")
        return reply

    def close(self) -> None:
        if self._ends is not None:
            self._ends[1].close()


async def _unless_gone(asking: Coroutine[None, None, bytes], reader: asyncio.StreamReader) -> bytes:
    """The reply, unless the client hangs up before: then the server is to see that, too."""
    answer, gone = asyncio.create_task(asking), asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            assert gone.result() == b"", "this proxy knows no pipelined requests"
            raise ConnectionResetError("the client hung up")
        return answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.wait({answer, gone})


async def _message(reader: asyncio.StreamReader) -> bytes | None:
    """A request or a reply, whole; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        assert name.lower() != b"transfer-encoding", "this proxy needs a Content-Length"
    return head + await reader.readexactly(length)


def _parsed(message: bytes) -> Request:
    head, _, content = message.partition(b"\r\n\r\n")
    method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
    return Request(method, path, content)


def _shape(path: str) -> str:
    """A path without its query and its session id: `/v1/sessions/{id}/step`."""
    parts = path.partition("?")[0].split("/")
    if parts[1:3] == ["v1", "sessions"] and len(parts) > 3:
        parts[3] = "{id}"
    return "/".join(parts)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP reset."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it has ended already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(
    target: str,
    *,
    choose: Choose = lambda request: None,
    up: Link | None = None,
    down: Link | None = None,
    delay_s: float = 0.2,
    throttle_bytes_per_s: float = 4096.0,
) -> AsyncIterator[FaultProxy]:
    """A proxy in front of `target` (a URL), listening on a free port of this machine."""
    proxy = FaultProxy(target, choose, up or Link(), down or Link(), delay_s, throttle_bytes_per_s)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
