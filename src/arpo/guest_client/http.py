"""A guest that answers over HTTP: our guest server, on a unix socket or an address."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from arpo.guest_client.answers import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    MAX_TREE_BYTES,
    REST,
    SCREENSHOT,
    Answer,
    Bound,
    read_body,
)
from arpo.guest_client.base import CommandResult, GuestError, GuestFileMissing, Settle
from arpo.protocol.actions import ACTIONS, TERMINAL, Action, Drag, Scroll, Type, Wait
from arpo.telemetry.phases import add_phase, phase

_CONNECT_S = 10.0
_READ_S = 30.0
_OPEN_FILE_S = 90.0
_ACCESSIBILITY_S = 90.0

_PRINTED = Bound(MAX_TEXT_BYTES, "what the command printed")
_TERMINAL = Bound(MAX_TEXT_BYTES, "the terminal's text")
_ACCESSIBILITY = Bound(MAX_TEXT_BYTES, "the accessibility tree")


class _Settled(TypedDict):
    seconds: float


class _TerminalText(TypedDict):
    output: str | None


class _AccessibilityTree(TypedDict):
    AT: str


_SETTLED = TypeAdapter(_Settled)
_RESULT = TypeAdapter(CommandResult)
_TERMINAL_TEXT = TypeAdapter(_TerminalText)
_ACCESSIBILITY_TREE = TypeAdapter(_AccessibilityTree)


class HttpGuestClient:
    """Implements `GuestClient` over the guest server's routes.

    Any transport error, refusal, or answer that is too large (`answers`) is a `GuestError`.
    """

    def __init__(self, *, uds: str | None = None, base_url: str = "http://guest") -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            transport=httpx.AsyncHTTPTransport(uds=uds, limits=httpx.Limits(max_connections=None)),
            timeout=_timeout(_READ_S),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,  # a guest is never behind a proxy
        )

    async def health(self) -> None:
        """Wait until the guest server serves (its socket may be there before it)."""
        await self._call("GET", "/arpo/health", read_s=60.0)

    async def screenshot(self) -> bytes:
        """The screen as PNG, with the mouse cursor."""
        return (await self._call("GET", "/screenshot", bound=SCREENSHOT)).body

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        """Perform actions in order, then wait until the screen is quiet."""
        if any(isinstance(action, TERMINAL) for action in actions):
            raise ValueError("terminal actions do nothing on a screen")
        body = {"actions": ACTIONS.dump_python(list(actions), mode="json"), "settle": _settle(settle)}
        start = time.monotonic()
        answer = await self._call(
            "POST", "/arpo/act", json=body, read_s=_READ_S + settle.ceiling_s + _duration_s(actions)
        )
        settling_s = answer.parsed(_SETTLED)["seconds"]
        add_phase("act", time.monotonic() - start - settling_s, start)
        add_phase("settle", settling_s)

    async def settle(self, settle: Settle) -> None:
        """Wait until the screen is quiet."""
        body = {"settle": _settle(settle)}
        with phase("settle"):
            await self._call("POST", "/arpo/settle", json=body, read_s=_READ_S + settle.ceiling_s)

    async def execute(
        self, command: str | Sequence[str], *, shell: bool = False, timeout_s: float = 120.0
    ) -> CommandResult:
        """Run a command to its end. `GuestError` when it cannot be run or does not end in time."""
        body = {"command": _command(command), "shell": shell, "timeout": timeout_s}
        answer = await self._call("POST", "/execute", json=body, read_s=timeout_s + _READ_S, bound=_PRINTED)
        return answer.parsed(_RESULT)

    async def launch(self, command: str | Sequence[str], *, shell: bool = False) -> None:
        """Start a program and do not wait for it."""
        await self._call("POST", "/setup/launch", json={"command": _command(command), "shell": shell})

    async def open_file(self, path: str) -> None:
        """Open a file with its application and wait for its window."""
        await self._call("POST", "/setup/open_file", json={"path": path}, read_s=_OPEN_FILE_S)

    async def activate_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Raise a window; False when there is none of that name."""
        return await self._window("/setup/activate_window", name, strict, by_class)

    async def close_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Close a window; False when there is none of that name."""
        return await self._window("/setup/close_window", name, strict, by_class)

    async def read_file(self, path: str) -> bytes:
        """A file's content. Raises `GuestFileMissing`."""
        bound = Bound(MAX_FILE_BYTES, path)
        answer = await self._call("POST", "/file", data={"file_path": path}, also=(404,), bound=bound)
        if answer.status == 404:
            raise GuestFileMissing(path)
        return answer.body

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file, making its folders."""
        form = {"file_path": path}
        content = ("file", io.BytesIO(data))  # sent in chunks; bytes would go in one, and others would wait
        await self._call("POST", "/setup/upload", data=form, files={"file_data": content})

    async def list_directory(self, path: str) -> dict[str, object]:
        """OSWorld's directory tree of `path`."""
        bound = Bound(MAX_TREE_BYTES, f"the directory tree of {path}")
        listed = (await self._call("POST", "/list_directory", json={"path": path}, bound=bound)).json()
        tree = listed.get("directory_tree") if isinstance(listed, dict) else None
        if not isinstance(tree, dict):
            raise GuestError(f"the guest answered no directory tree of {path}")
        return tree

    async def terminal_output(self) -> str | None:
        """The text of the active terminal window, if there is one."""
        answer = await self._call("GET", "/terminal", read_s=_ACCESSIBILITY_S, bound=_TERMINAL)
        return answer.parsed(_TERMINAL_TEXT)["output"]

    async def accessibility_tree(self) -> str:
        """The accessibility tree as OSWorld's XML (seconds; only on request)."""
        answer = await self._call("GET", "/accessibility", read_s=_ACCESSIBILITY_S, bound=_ACCESSIBILITY)
        return answer.parsed(_ACCESSIBILITY_TREE)["AT"]

    async def close(self) -> None:
        """Release the connections; the guest goes on."""
        await self._http.aclose()

    async def _window(self, path: str, name: str, strict: bool, by_class: bool) -> bool:
        body = {"window_name": name, "strict": strict, "by_class": by_class}
        return (await self._call("POST", path, json=body, also=(404,))).status == 200

    async def _call(
        self,
        method: str,
        path: str,
        *,
        read_s: float = _READ_S,
        also: tuple[int, ...] = (),
        bound: Bound = REST,
        **content: Any,
    ) -> Answer:
        """Send a request; any status but 200 and those in `also` is an error. bound: of an answer with status 200."""
        if self._http.is_closed:
            raise GuestError(f"{method} {path}: the guest was stopped")
        try:
            async with self._http.stream(method, path, timeout=_timeout(read_s), **content) as response:
                status = response.status_code
                answer = Answer(status, await read_body(response, bound if status == 200 else REST))
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise GuestError(f"{method} {path}: the guest does not answer: {reason}") from error
        except GuestError as error:
            raise GuestError(f"{method} {path}: {error}") from error
        if status == 200 or status in also:
            return answer
        raise GuestError(f"{method} {path}: {answer.reason()}")


def _timeout(read_s: float) -> httpx.Timeout:
    return httpx.Timeout(connect=_CONNECT_S, read=read_s, write=60.0, pool=_CONNECT_S)


def _settle(settle: Settle) -> dict[str, float]:
    return {"quiet_s": settle.quiet_s, "ceiling_s": settle.ceiling_s}


def _command(command: str | Sequence[str]) -> str | list[str]:
    return command if isinstance(command, str) else list(command)


def _duration_s(actions: Sequence[Action]) -> float:
    """An upper bound of how long the actions themselves take in the guest."""
    seconds = 0.0
    for action in actions:
        match action:
            case Wait():
                seconds += action.seconds
            case Type():
                seconds += 0.01 * len(action.text)
            case Scroll():
                seconds += 0.05 * action.amount
            case Drag():
                seconds += 1.0
            case _:
                seconds += 0.5
        seconds += 1.0  # the guest lets programs keep up between two actions
    return seconds
