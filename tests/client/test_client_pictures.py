"""Callers see a picture with every observation, also when the server says only that it is the one before."""

from __future__ import annotations

import asyncio

import httpx
import msgpack
import pytest
from scripted_desktop import TASK, TOKEN, Script, env_server, picture

from arpo.client import EnvClient
from arpo.protocol.actions import Click
from arpo.protocol.problems import ProblemCode, ProblemError

CLICK = [Click(x=1, y=1)]
STILL = Script(screen=lambda number: picture(min(number, 1)))
"""The screen changes with the first step and never again."""


class Wiretap(httpx.AsyncHTTPTransport):
    """Keeps what was received, after `edit` had it."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[tuple[str, dict]] = []
        self.edit = lambda path, document: document

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        content = await response.aread()
        if response.headers.get("content-type") != "application/msgpack":
            return response
        document = self.edit(request.url.path, msgpack.unpackb(content))
        self.replies.append((request.url.path, document))
        headers = {"content-type": "application/msgpack"}
        return httpx.Response(response.status_code, headers=headers, content=msgpack.packb(document))


def with_tap(folder, story) -> None:
    async def main() -> None:
        tap = Wiretap()
        async with env_server(folder, STILL) as server, EnvClient(server.url, TOKEN, http=tap) as client:
            await server.client.wait_ready(10)
            await story(client, tap, server)

    asyncio.run(main())


def sent_bytes(tap: Wiretap) -> list[int]:
    return [
        len(document["observation"]["screenshot"]["data"])
        for path, document in tap.replies
        if path.endswith("/step")
    ]


def test_an_unchanged_screen_travels_once_and_is_seen_every_time(tmp_path) -> None:
    async def story(client, tap, server) -> None:
        async with await client.open_session(TASK) as session:
            assert session.observation.screenshot.data == picture(0)
            replies = [await session.step(CLICK) for _ in range(3)]
            assert [reply.observation.unchanged for reply in replies] == [False, True, True]
            assert sent_bytes(tap) == [len(picture(1)), 0, 0]
            for reply in replies:
                assert reply.observation.screenshot.data == picture(1)
            assert session.observation == replies[-1].observation

    with_tap(tmp_path, story)


def test_a_picture_that_is_not_there_is_fetched(tmp_path) -> None:
    async def story(client, tap, server) -> None:
        async with await server.client.open_session(TASK) as first:
            for _ in range(2):
                await first.step(CLICK)
            session = await client.attach(first.id, first.lease)
            # As if the screen had changed between what it saw and the step that it repeats.
            session._observation = None
            reply = await session.step(CLICK, seq=2)
            assert reply.observation.unchanged
            assert reply.observation.screenshot.data == picture(1)
            assert sent_bytes(tap) == [0]

    with_tap(tmp_path, story)


@pytest.mark.parametrize("missing", [b"", b"another picture"])
def test_a_picture_that_is_not_what_it_says_is_refused_and_the_step_can_be_repeated(
    tmp_path, missing
) -> None:
    async def story(client, tap, server) -> None:
        def wrong(path: str, document: dict) -> dict:
            if document.get("observation"):
                document["observation"]["screenshot"]["data"] = missing
                document["observation"]["screenshot"]["sha256"] = 64 * "0"
            return document

        async with await client.open_session(TASK) as session:
            tap.edit = wrong
            with pytest.raises(ProblemError, match="picture") as caught:
                await session.step(CLICK)
            assert caught.value.code is ProblemCode.BACKEND_LOST
            tap.edit = lambda path, document: document
            assert (await session.step(CLICK)).seq == 1

    with_tap(tmp_path, story)
