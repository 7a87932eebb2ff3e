"""OSWorld's setup steps over any guest.

A step type is a coroutine whose keyword arguments are the step's `parameters`. Where OSWorld only logs a failure and
goes on (a program that does not start, a window that is not there), a task's setup fails here: an episode must not
start from a state that the task does not describe. Only in the evaluator's `postconfig` may a window be missing, since
there the agent may have closed it.

Invariants
- A step either did what it says or raised SetupError naming it.
- Parameters of the wrong shape are the task's fault and are found before the step touches the guest.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from arpo.desktop.chromium import DevTools, DevToolsError, same_page
from arpo.desktop.sources import SourceError, Sources, store
from arpo.guest_client import CommandResult, GuestError
from arpo.providers.base import Guest
from arpo.tasks.model import SetupStep

Command = str | list[str | int | float]

_POLL_S = 0.3
_WINDOW_POLL_S = 0.05  # cheap to ask for, and every reset that launches a program waits for one
_UNSUPPORTED = {
    "googledrive": "it needs a Google account",
    "login": "it needs an account and the internet",
    "proxy": "it needs OSWorld's proxy pool",
    "update_browse_history": "it needs a file of OSWorld's hub; write the History file with `download` instead",
    "act": "OSWorld does not implement it",
    "replay": "OSWorld does not implement it",
    "tidy_desktop": "OSWorld does not implement it",
}


class SetupError(Exception):
    """A step failed. `task_is_wrong`: it would fail on every desktop."""

    def __init__(self, message: str, *, task_is_wrong: bool = False) -> None:
        super().__init__(message)
        self.task_is_wrong = task_is_wrong


@dataclass(frozen=True)
class SetupContext:
    """What steps work with.

    cache_dir: the episode's folder on this host, for `stdout`/`stderr` files and the `cache_file` getter.
    password: what `{CLIENT_PASSWORD}` in a command stands for.
    windows_may_be_missing: whether `activate_window` and `close_window` accept that there is no such window.
    window_wait_s: how long a window that was just launched may take to appear.
    """

    guest: Guest
    sources: Sources
    cache_dir: Path
    password: str = "password"  # noqa: S105 - OSWorld's images all have it
    windows_may_be_missing: bool = False
    window_wait_s: float = 10.0


async def run_setup(steps: Sequence[SetupStep], context: SetupContext) -> None:
    """Perform the steps in order. Raises SetupError that names the step that failed."""
    for number, step in enumerate(steps, start=1):
        where = f"setup step {number} ({step.type})"
        if step.type in _UNSUPPORTED:
            raise SetupError(f"{where} is not supported: {_UNSUPPORTED[step.type]}", task_is_wrong=True)
        try:
            parameters = _checked(step)
        except (TypeError, ValueError) as error:
            raise SetupError(f"{where}: {error}", task_is_wrong=True) from error
        try:
            await _STEPS[step.type](context, **parameters)
        except SourceError as error:
            raise SetupError(f"{where}: {error}", task_is_wrong=error.permanent) from error
        except (GuestError, DevToolsError, _StepError) as error:
            raise SetupError(f"{where}: {error}") from error


class _StepError(Exception):
    """A step did not have its effect."""


class _Download(TypedDict):
    url: str
    path: str


class _Upload(TypedDict):
    local_path: str
    path: str


class _Until(TypedDict, total=False):
    returncode: int
    stdout: str
    stderr: str


class _Verification(TypedDict, total=False):
    window_exists: str
    command_success: Command


async def _download(context: SetupContext, files: list[_Download]) -> None:
    for file in files:
        await context.guest.client.write_file(file["path"], await context.sources.fetch(file["url"]))


async def _upload_file(context: SetupContext, files: list[_Upload]) -> None:
    for file in files:
        # OSWorld reads any path of the host here; ours is whatever `Sources` allows.
        await context.guest.client.write_file(file["path"], await context.sources.fetch(file["local_path"]))


async def _open(context: SetupContext, path: str) -> None:
    await context.guest.client.open_file(path)


async def _launch(context: SetupContext, command: Command, shell: bool = False) -> None:
    words = _filled(context, command)
    if isinstance(words, str) and not shell:
        words = words.split()
    await context.guest.client.launch(words, shell=shell)


async def _execute(
    context: SetupContext,
    command: Command,
    stdout: str = "",
    stderr: str = "",
    shell: bool = False,
    until: _Until | None = None,
) -> None:
    words = _filled(context, command)
    while True:
        result = await context.guest.client.execute(words, shell=shell)
        for name, text in ((stdout, result.output), (stderr, result.error)):
            if name:
                await store(context.cache_dir, name, text.encode())
        if not until or _reached(until, result):
            return
        await asyncio.sleep(_POLL_S)


async def _execute_with_verification(
    context: SetupContext,
    command: Command,
    verification: _Verification | None = None,
    max_wait_time: float = 10.0,
    check_interval: float = 1.0,
    shell: bool = False,
) -> None:
    await context.guest.client.execute(_filled(context, command), shell=shell)
    wanted = verification or {}

    async def holds() -> bool:
        client = context.guest.client
        window, check = wanted.get("window_exists"), wanted.get("command_success")
        if window and not await client.activate_window(window):
            return False
        if not check:
            return True
        result = await client.execute(_filled(context, check), shell=True)  # noqa: S604 - in the guest
        return result.returncode == 0

    if not await _within(max_wait_time, check_interval, holds):
        raise _StepError(f"{wanted} did not come true in {max_wait_time:g} s")


async def _sleep(context: SetupContext, seconds: float) -> None:
    await asyncio.sleep(float(seconds))


async def _activate_window(
    context: SetupContext, window_name: str, strict: bool = False, by_class: bool = False
) -> None:
    client = context.guest.client
    await _on_window(
        context, window_name, lambda: client.activate_window(window_name, strict=strict, by_class=by_class)
    )


async def _close_window(
    context: SetupContext, window_name: str, strict: bool = False, by_class: bool = False
) -> None:
    client = context.guest.client
    await _on_window(
        context, window_name, lambda: client.close_window(window_name, strict=strict, by_class=by_class)
    )


async def _change_wallpaper(context: SetupContext, path: str) -> None:
    command = ["gsettings", "set", "org.gnome.desktop.background", "picture-uri", f"file://{path}"]
    result = await context.guest.client.execute(command)
    if result.returncode != 0:
        raise _StepError(f"gsettings failed: {(result.error or result.output).strip()[-300:]}")


async def _chrome_open_tabs(context: SetupContext, urls_to_open: list[str]) -> None:
    tools = DevTools(context.guest)
    before = await tools.tabs()
    for url in urls_to_open:
        await tools.open(url)
    if before and urls_to_open:
        await tools.close(before[-1])  # the page that Chromium started with, as OSWorld does


async def _chrome_close_tabs(context: SetupContext, urls_to_close: list[str]) -> None:
    tools = DevTools(context.guest)
    tabs = await tools.tabs()
    for url in urls_to_close:
        found = next((tab for tab in tabs if same_page(tab.url, url)), None)
        if found is not None:
            await tools.close(found)
            tabs.remove(found)


_STEPS: dict[str, Callable[..., Awaitable[None]]] = {
    "download": _download,
    "upload_file": _upload_file,
    "open": _open,
    "launch": _launch,
    "execute": _execute,
    "command": _execute,
    "execute_with_verification": _execute_with_verification,
    "sleep": _sleep,
    "activate_window": _activate_window,
    "close_window": _close_window,
    "change_wallpaper": _change_wallpaper,
    "chrome_open_tabs": _chrome_open_tabs,
    "chrome_close_tabs": _chrome_close_tabs,
}


@cache
def _parameter_types(kind: str) -> tuple[inspect.Signature, dict[str, TypeAdapter[Any]]]:
    signature = inspect.signature(_STEPS[kind], eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "context"]
    types = {parameter.name: TypeAdapter(parameter.annotation) for parameter in own}
    return signature.replace(parameters=own), types


def _checked(step: SetupStep) -> dict[str, Any]:
    """The step's parameters as its coroutine takes them. Raises TypeError or ValueError that says which is wrong."""
    signature, types = _parameter_types(step.type)
    given = signature.bind(**step.parameters).arguments
    try:
        for name, value in given.items():
            given[name] = types[name].validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "missing":
            raise ValueError(f"{first['loc'][-1]!r} is missing") from error
        place = ".".join([name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{place}: {first['msg'].lower()}") from error
    return given


def _filled(context: SetupContext, command: Command) -> str | list[str]:
    width, height = context.guest.screen
    values = {
        "{CLIENT_PASSWORD}": context.password,
        "{SCREEN_WIDTH_HALF}": str(width // 2),
        "{SCREEN_HEIGHT_HALF}": str(height // 2),
        "{SCREEN_WIDTH}": str(width),
        "{SCREEN_HEIGHT}": str(height),
    }

    def fill(word: str) -> str:
        for name, value in values.items():
            word = word.replace(name, value)
        return word

    return fill(command) if isinstance(command, str) else [fill(str(word)) for word in command]


def _reached(until: _Until, result: CommandResult) -> bool:
    return (
        ("returncode" in until and result.returncode == until["returncode"])
        or ("stdout" in until and until["stdout"] in result.output)
        or ("stderr" in until and until["stderr"] in result.error)
    )


async def _on_window(context: SetupContext, name: str, act: Callable[[], Awaitable[bool]]) -> None:
    wait_s = 0.0 if context.windows_may_be_missing else context.window_wait_s
    if not await _within(wait_s, _WINDOW_POLL_S, act) and not context.windows_may_be_missing:
        raise _StepError(f"no window {name!r} after {wait_s:g} s")


async def _within(seconds: float, interval: float, holds: Callable[[], Awaitable[bool]]) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await holds():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(interval)
    return True
