"""Tabs of the guest's Chromium, through the DevTools HTTP endpoints.

Asked at the guest's DevTools address when it has one on this host, else from inside the guest, at the ports that
OSWorld's tasks use. Playwright is not needed for tabs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from arpo.guest_client.answers import MAX_TREE_BYTES, Bound, read_body
from arpo.providers.base import Guest

_TABS = Bound(MAX_TREE_BYTES, "the list of Chromium's tabs")

_PORTS_INSIDE = (9222, 1337)
_ASK_INSIDE = """
import sys, urllib.request
method, path, *ports = sys.argv[1:]
for port in ports:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        sys.stdout.write(urllib.request.urlopen(request, timeout=5).read().decode())
        break
    except OSError as error:
        sys.stderr.write(f"port {port}: {error}; ")
else:
    sys.exit(1)
"""


class DevToolsError(Exception):
    """Chromium's DevTools do not answer."""


@dataclass(frozen=True)
class Tab:
    """One open page."""

    id: str
    url: str
    title: str


class _Listed(BaseModel):
    id: str
    url: str
    title: str = ""
    type: str = ""


_LISTED = TypeAdapter(list[_Listed])


class DevTools:
    """The tabs of one guest's Chromium. Methods raise DevToolsError or GuestError.

    wait_s: how long to wait for a Chromium that is still starting.
    """

    def __init__(self, guest: Guest, *, wait_s: float = 30.0) -> None:
        self._guest = guest
        self._wait_s = wait_s

    async def tabs(self) -> list[Tab]:
        """The open pages, newest first."""
        answer = await self._ask("GET", "/json/list")
        try:  # whoever listens there, it is a program of the guest's
            return [Tab(t.id, t.url, t.title) for t in _LISTED.validate_json(answer) if t.type == "page"]
        except ValidationError as error:
            raise DevToolsError(
                f"Chromium's DevTools answered what is no list of tabs: {answer[:100]!r}"
            ) from error

    async def open(self, url: str) -> None:
        """Open a page in a new tab."""
        await self._ask("PUT", f"/json/new?{quote(url, safe=':/?#[]@!$&()*+,;=%')}")

    async def close(self, tab: Tab) -> None:
        """Close a tab."""
        await self._ask("GET", f"/json/close/{tab.id}")

    async def _ask(self, method: str, path: str) -> str:
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while True:
            try:
                if self._guest.addresses.chromium is not None:
                    return await self._ask_at(self._guest.addresses.chromium, method, path)
                return await self._ask_inside(method, path)
            except DevToolsError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(0.5)

    async def _ask_at(self, address: str, method: str, path: str) -> str:
        try:
            # No proxy leads to a guest.
            async with (
                httpx.AsyncClient(
                    timeout=5.0, trust_env=False, headers={"Accept-Encoding": "identity"}
                ) as client,
                client.stream(method, f"http://{address}{path}") as response,
            ):
                response.raise_for_status()
                return (await read_body(response, _TABS)).decode("utf-8", "replace")
        except httpx.HTTPError as error:
            raise DevToolsError(f"Chromium's DevTools at {address} do not answer: {error}") from error

    async def _ask_inside(self, method: str, path: str) -> str:
        ports = [str(port) for port in _PORTS_INSIDE]
        result = await self._guest.client.execute(["python3", "-c", _ASK_INSIDE, method, path, *ports])
        if result.returncode != 0:
            raise DevToolsError(
                f"Chromium's DevTools do not answer in the guest: {result.error.strip()[-300:]}"
            )
        return result.output


def same_page(one: str, other: str) -> bool:
    """Whether two URLs name one page: scheme, `www.` and a last slash do not matter."""
    return _page(one) == _page(other)


def _page(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return parts.netloc.lower().removeprefix("www."), parts.path.rstrip("/"), parts.query
