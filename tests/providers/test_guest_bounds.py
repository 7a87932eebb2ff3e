"""A guest that sends more than anybody asked for, or something else: bounded cost and a typed error."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import GuestClient, GuestError, Settle
from arpo.guest_client.answers import MAX_FILE_BYTES
from arpo.guest_client.http import HttpGuestClient
from arpo.guest_client.osworld import OsworldGuestClient, _differ
from arpo.protocol.actions import Press
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.base import Guest
from arpo.tasks.validate import parse_task

TWO_GIB = 2**31
CHUNK = b"y" * 2**16
SLACK = 16 * 2**20
"""What may be on its way between two sockets."""


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def whole(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


class Sender:
    """A guest that answers `answer` everywhere but where `normal` has something better, and counts what it sent."""

    def __init__(self, answer: bytes | str, normal: dict[str, bytes] | None = None) -> None:
        self.answer = answer
        self.normal = normal or {}
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
                await reader.readexactly(int(fields.get(b"content-length", 0)))
                path = head.split()[1].decode()
                if path in self.normal:
                    writer.write(whole(self.normal[path]))
                elif isinstance(self.answer, bytes):
                    writer.write(self.answer)
                else:
                    await self.flood(writer, chunked="chunked" in self.answer, status=self.answer.split()[0])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has heard enough
        finally:
            writer.close()

    async def flood(self, writer: asyncio.StreamWriter, *, chunked: bool, status: str) -> None:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {TWO_GIB}"
        writer.write(f"HTTP/1.1 {status} OK\r\n{length}\r\n\r\n".encode())
        piece = b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK) if chunked else CHUNK
        for _ in range(TWO_GIB // len(CHUNK)):
            writer.write(piece)
            await writer.drain()
            self.sent += len(piece)


@asynccontextmanager
async def guest_that(sender: Sender, folder: Path) -> AsyncIterator[HttpGuestClient]:
    socket = str(folder / "guest.sock")
    async with await asyncio.start_unix_server(sender.serve, socket):
        client = HttpGuestClient(uds=socket)
        try:
            yield client
        finally:
            await client.close()


def error_of(sender: Sender, folder: Path, call: Callable[[GuestClient], Awaitable[object]]) -> str:
    async def story() -> str:
        async with guest_that(sender, folder) as client:
            with pytest.raises(GuestError) as caught:
                await call(client)
            return str(caught.value)

    return asyncio.run(story())


CALLS: list[tuple[Callable[[GuestClient], Awaitable[object]], str, int]] = [
    (lambda client: client.read_file("/a/file"), "POST /file: /a/file is larger than 64 MiB", 64),
    (lambda client: client.screenshot(), "GET /screenshot: the screenshot is larger than 32 MiB", 32),
    (lambda client: client.execute(["x"]), "POST /execute: what the command printed is larger than 8 MiB", 8),
    (lambda client: client.terminal_output(), "the terminal's text is larger than 8 MiB", 8),
    (lambda client: client.accessibility_tree(), "the accessibility tree is larger than 8 MiB", 8),
    (lambda client: client.list_directory("/a"), "the directory tree of /a is larger than 2 MiB", 2),
    (lambda client: client.act([Press(key="a")], Settle()), "the answer is larger than 1 MiB", 1),
]


@pytest.mark.parametrize(("call", "said", "mebibytes"), CALLS)
def test_an_answer_of_two_gib_is_read_up_to_its_bound_and_is_an_error(
    call, said, mebibytes, tmp_path
) -> None:
    sender = Sender("200 chunked")
    assert said in error_of(sender, tmp_path, call)
    assert sender.sent < (mebibytes << 20) + SLACK


@pytest.mark.parametrize(("call", "said", "mebibytes"), CALLS)
def test_an_answer_that_says_it_has_two_gib_is_not_read(call, said, mebibytes, tmp_path) -> None:
    sender = Sender("200 length")
    assert said in error_of(sender, tmp_path, call)
    assert sender.sent < SLACK


@pytest.mark.parametrize("status", ["404 chunked", "500 chunked"])
def test_a_refusal_has_a_bound_too(status, tmp_path) -> None:
    sender = Sender(status)
    assert "larger than 1 MiB" in error_of(sender, tmp_path, lambda client: client.read_file("/a"))
    assert sender.sent < SLACK


def test_an_answer_that_would_unfold_is_an_error(tmp_path) -> None:
    bomb = whole(gzip.compress(bytes(2**24)), more="Content-Encoding: gzip\r\n")
    assert "encoding 'gzip'" in error_of(Sender(bomb), tmp_path, lambda client: client.read_file("/a"))


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"[]", b"{}", b'{"output": 1}', b"[" * 100_000, b'{"returncode": 0, "output": [1]}'],
)
@pytest.mark.parametrize("call", [call for call, _, _ in CALLS[2:]])
def test_an_answer_of_another_shape_is_an_error(call, body, tmp_path) -> None:
    assert "the guest answered" in error_of(Sender(whole(body)), tmp_path, call)


def test_a_file_as_large_as_files_may_be_arrives(tmp_path) -> None:
    content = bytes(MAX_FILE_BYTES)

    async def story() -> bytes:
        async with guest_that(Sender(whole(content)), tmp_path) as client:
            return await client.read_file("/a")

    assert asyncio.run(story()) == content


def test_what_is_no_picture_is_the_guests_error() -> None:
    with pytest.raises(GuestError, match="no picture"):
        _differ(png(), b"\x89PNG nothing")


def test_a_screenshot_of_osworlds_may_be_larger_than_an_acknowledgement(tmp_path) -> None:
    async def story() -> None:
        sender = Sender(whole(bytes(2**22)))
        server = await asyncio.start_server(sender.serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            client = OsworldGuestClient(f"http://{host}:{port}")
            await client.health()
            await client.close()

    asyncio.run(story())


@pytest.mark.parametrize("flood", ["200 chunked", "200 length"])
@pytest.mark.parametrize(
    ("getter", "said"),
    [
        ({"type": "vm_file", "path": "/home/user/a", "dest": "a"}, "/home/user/a is larger than 64 MiB"),
        ({"type": "vm_command_line", "command": "cat a"}, "what the command printed is larger than 8 MiB"),
    ],
)
def test_an_evaluation_that_gets_too_much_fails_and_has_no_score(getter, said, flood, tmp_path) -> None:
    task = parse_task(
        {
            "id": "t",
            "instruction": "Do.",
            "config": [],
            "evaluator": {
                "func": "exact_match",
                "result": getter,
                "expected": {"type": "rule", "rules": {"expected": "y"}},
            },
        },
        "task",
    )

    async def story() -> ProblemError:
        sender = Sender(flood, {"/screenshot": png(), "/arpo/settle": b"{}"})
        async with guest_that(sender, tmp_path) as client:
            desktop = GuestDesktop(OneGuest(client))
            try:
                await desktop.reset(task)
                with pytest.raises(ProblemError) as caught:
                    await desktop.evaluate()
                return caught.value
            finally:
                await desktop.close()

    problem = asyncio.run(story())
    assert problem.code is ProblemCode.EVALUATOR_FAILED
    assert said in str(problem)


class OneGuest:
    """A provider of the one guest there is."""

    name = "one"

    def __init__(self, client: GuestClient) -> None:
        self._client = client

    async def start(self) -> Guest:
        return Guest(id="one", client=self._client, screen=(8, 8))

    async def stop(self, guest: Guest) -> None:
        pass

    preflight = reset = expose = pause = resume = close = None
