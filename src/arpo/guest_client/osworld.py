"""A guest that runs OSWorld's own server: the virtual machines and containers of OSWorld's providers.

Such a guest has none of our `/arpo/` routes. Actions go through its pyautogui, a whole list in one call; quiet is found
by comparing screenshots; and where OSWorld's server says "success" whatever happened, it is asked in another way.

Invariant: what an agent types travels as data (see `osworld_program`), never inside code or a shell's line.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import posixpath
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cache
from importlib import resources
from typing import Any

from PIL import Image, ImageChops

from arpo.guest_client.answers import SCREENSHOT, Answer
from arpo.guest_client.base import GuestError, Settle
from arpo.guest_client.http import HttpGuestClient
from arpo.protocol.actions import ACTIONS, TERMINAL, Action, Press, Type, Wait

Awake = Callable[[], AbstractAsyncContextManager[object]]

_MAX_ACTION_S = 110.0  # OSWorld's server ends a command after 120 s
_MAX_TYPED = 2000  # characters in one call
_MAX_ACTIONS = 40  # in one call

# Only pixels tell here, not what the guest's programs are computing: an application that thinks for a third of a second
# must not pass for quiet.
_QUIET_S = 0.4
_LOOK_S = 0.05
_CARET_WIDTH, _CARET_HEIGHT = 3, 48
_WINDOW_S = 10.0


class OsworldGuestClient(HttpGuestClient):
    """Implements `GuestClient` over OSWorld's guest routes.

    base_url: e.g. `http://192.168.56.3:5000`.
    awake: entered around every request; a provider that pauses idle guests wakes this one in it.
    """

    def __init__(self, base_url: str, *, awake: Awake = nullcontext) -> None:
        super().__init__(base_url=base_url)
        self._awake = awake

    async def health(self) -> None:
        """One screenshot. Raises `GuestError` when the guest does not serve (yet)."""
        await self._call("GET", "/screenshot", read_s=10.0, bound=SCREENSHOT)

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        """Perform actions in order, then wait until the screen is quiet."""
        if any(isinstance(action, TERMINAL) for action in actions):
            raise ValueError("terminal actions do nothing on a screen")
        for batch in _batches(actions):
            if isinstance(batch, Wait):
                await asyncio.sleep(batch.seconds)
            else:
                await self._perform(batch)
        await self.settle(settle)

    async def settle(self, settle: Settle) -> None:
        """Wait until the screen is quiet: no pixel changed for a while, a caret's blinking left out."""
        loop = asyncio.get_running_loop()
        frame = await self.screenshot()
        start = changed = loop.time()
        quiet_s = max(settle.quiet_s, _QUIET_S)
        while (now := loop.time()) - changed < quiet_s and now - start < settle.ceiling_s:
            await asyncio.sleep(_LOOK_S)
            after = await self.screenshot()
            if await asyncio.to_thread(_differ, frame, after):
                changed = loop.time()
            frame = after

    async def open_file(self, path: str) -> None:
        """Open a file with its application and wait until something has appeared and is painted.

        Older servers answer at once, before there is a window.
        """
        before = await self.screenshot()
        await super().open_file(path)
        with contextlib.suppress(TimeoutError):  # it was open already: nothing appears
            async with asyncio.timeout(_WINDOW_S):
                # The screen is not ours to be told about.
                while not await asyncio.to_thread(_differ, before, await self.screenshot()):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        await self.settle(Settle(quiet_s=0.5, ceiling_s=_WINDOW_S))

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file, making its folders (older servers do not)."""
        try:
            await super().write_file(path, data)
        except GuestError:
            made = await self.execute(["mkdir", "-p", posixpath.dirname(path)])
            if made.returncode != 0:
                raise
            await super().write_file(path, data)

    async def _perform(self, actions: Sequence[Action]) -> None:
        payload = {
            "actions": ACTIONS.dump_python(list(actions), mode="json"),
            "modules": _keyboard() if any(map(_is_foreign, actions)) else {},
        }
        argument = base64.b64encode(zlib.compress(json.dumps(payload).encode())).decode()
        result = await self.execute(["python", "-c", _program(), argument], timeout_s=_MAX_ACTION_S)
        if result.returncode != 0:
            said = (result.error or result.output).strip().splitlines()
            raise GuestError(
                f"the guest could not perform the actions: {said[-1] if said else 'it said nothing'}"
            )

    async def _window(self, path: str, name: str, strict: bool, by_class: bool) -> bool:
        """OSWorld's route answers "success" on Linux whether there is such a window or not; `wmctrl` tells."""
        do = "-a" if path.endswith("activate_window") else "-c"
        options = [*(["-x"] if by_class else []), *(["-F"] if strict else []), do]
        try:
            return (await self.execute(["wmctrl", *options, name])).returncode == 0
        except GuestError:  # no wmctrl in this guest (Windows, ours): its route tells the truth
            return await super()._window(path, name, strict, by_class)

    async def _call(self, method: str, path: str, **how: Any) -> Answer:
        async with self._awake():
            return await super()._call(method, path, **how)


@cache
def _program() -> str:
    return resources.files("arpo.guest_client").joinpath("osworld_program.py").read_text("utf-8")


@cache
def _keyboard() -> dict[str, str]:
    """The sources of our guest's keyboard, in the order in which they import each other."""
    folder = resources.files("arpo.guest")
    return {name: folder.joinpath(f"{name}.py").read_text("utf-8") for name in ("keysyms", "keyboard")}


def _is_foreign(action: Action) -> bool:
    """Whether pyautogui alone cannot type it."""
    match action:
        case Type():
            return not action.text.isascii()
        case Press():
            return not action.key.isascii()
        case _:
            return False


def _batches(actions: Sequence[Action]) -> Iterator[list[Action] | Wait]:
    """What goes into one call each: few enough to end in time, waits apart since they need no guest."""
    batch: list[Action] = []
    typed = 0
    for action in _pieces(actions):
        length = len(action.text) if isinstance(action, Type) else 0
        full = len(batch) == _MAX_ACTIONS or typed + length > _MAX_TYPED
        if batch and (full or isinstance(action, Wait)):
            yield batch
            batch, typed = [], 0
        if isinstance(action, Wait):
            yield action
        else:
            batch.append(action)
            typed += length
    if batch:
        yield batch


def _pieces(actions: Sequence[Action]) -> Iterator[Action]:
    for action in actions:
        if isinstance(action, Type):
            text = action.text.replace("\r\n", "\n")  # cut in two it would press Enter twice
            for start in range(0, len(text), _MAX_TYPED):
                yield Type(text=text[start : start + _MAX_TYPED])
        else:
            yield action


def _differ(one: bytes, other: bytes) -> bool:
    """Whether two screenshots differ by more than a text caret. Raises GuestError for what is no picture."""
    if one == other:
        return False
    try:
        box = _changed(one, other)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise GuestError(f"the guest's screenshot is no picture: {error}") from error
    if box is None:
        return False
    left, top, right, bottom = box
    return right - left > _CARET_WIDTH or bottom - top > _CARET_HEIGHT


def _changed(one: bytes, other: bytes) -> tuple[int, int, int, int] | None:
    """The box around what changed: left, top, right, bottom."""
    with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(other)) as second:
        if first.size != second.size:
            return (0, 0, *second.size)
        return ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox()
