"""OSWorld's getters over any guest: what a metric compares.

The common ones are written here over the guest's interface. The rest run unmodified from PyPI `desktop-env` in the
evaluator process; those that ask the guest need its HTTP address.

Invariants
- A file that the guest does not have is None, as OSWorld has it; a guest that does not answer is an error.
- Of this host, a getter sees and writes the episode's folder and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from arpo.desktop.evaluator_messages import GetterCall, GuestView
from arpo.desktop.evaluators import EvaluatorPool, MissingFile
from arpo.desktop.sources import Sources, inside, store
from arpo.guest_client import CommandResult, GuestFileMissing
from arpo.providers.base import Guest

Config = dict[str, Any]


@dataclass(frozen=True)
class GetterContext:
    """What getters work with.

    cache_dir: the episode's folder on this host; file getters return paths in it.
    timeout_s: limit for a getter that runs in the evaluator process.
    """

    guest: Guest
    sources: Sources
    cache_dir: Path
    pool: EvaluatorPool
    timeout_s: float


async def get(config: Config, context: GetterContext) -> object:
    """The value of the getter `config["type"]`.

    Raises MissingFile, SourceError, GuestError, EvaluatorError, TimeoutError; GetterConfigError for a parameter that is
    missing or of the wrong type.
    """
    own = _GETTERS.get(config["type"])
    return await (own(config, context) if own else _upstream(config, context))


class GetterConfigError(Exception):
    """A getter's configuration cannot be used."""


def runs_upstream(config: Config) -> bool:
    """Whether the getter is OSWorld's own code, which asks the guest over HTTP."""
    return config["type"] not in _GETTERS


async def _vm_file(config: Config, context: GetterContext) -> object:
    copies: list[str | None] = []
    for path, name in _pairs(config):
        if config.get("time_suffix", False):
            stem, suffix = posixpath.splitext(name)
            name = (
                f"{stem}_{datetime.now().strftime(str(config.get('time_format', '%Y%m%d_%H%M%S')))}{suffix}"
            )
        copies.append(await _copy(path, name, context))
    return _given(config, copies)


async def _cloud_file(config: Config, context: GetterContext) -> object:
    copies: list[str | None] = []
    for url, name in _pairs(config):
        target = inside(context.cache_dir, name)
        if not target.exists():
            target = await store(context.cache_dir, name, await context.sources.fetch(url))
        copies.append(str(target))
    return _given(config, copies)


async def _cache_file(config: Config, context: GetterContext) -> object:
    name = _text(config, "path")
    path = inside(context.cache_dir, name)
    if not path.exists():
        raise MissingFile(f"{name} is not in the episode's folder; did a step's `stdout` write it?")
    return str(path)


async def _content_from_vm_file(config: Config, context: GetterContext) -> object:
    path = _text(config, "path")
    copy = await _copy(path, posixpath.basename(path), context)
    if copy is None:
        return None
    return await _upstream(config, context, files={path: copy})


async def _vm_command_line(config: Config, context: GetterContext) -> object:
    return (await _execute(config, context)).output


async def _vm_command_error(config: Config, context: GetterContext) -> object:
    return (await _execute(config, context)).error


async def _vm_terminal_output(config: Config, context: GetterContext) -> object:
    return await context.guest.client.terminal_output()


async def _accessibility_tree(config: Config, context: GetterContext) -> object:
    return await context.guest.client.accessibility_tree()


async def _list_directory(config: Config, context: GetterContext) -> object:
    try:
        return await context.guest.client.list_directory(_text(config, "path"))
    except GuestFileMissing:
        return None


async def _vm_screen_size(config: Config, context: GetterContext) -> object:
    width, height = context.guest.screen
    return {"width": width, "height": height}


async def _rule(config: Config, context: GetterContext) -> object:
    return _given_value(config, "rules")


async def _time_diff_range(config: Config, context: GetterContext) -> object:
    return _given_value(config, "diff_range_in_minutes")


_GETTERS: dict[str, Callable[[Config, GetterContext], Awaitable[object]]] = {
    "vm_file": _vm_file,
    "cloud_file": _cloud_file,
    "cache_file": _cache_file,
    "content_from_vm_file": _content_from_vm_file,
    "vm_command_line": _vm_command_line,
    "vm_command_error": _vm_command_error,
    "vm_terminal_output": _vm_terminal_output,
    "accessibility_tree": _accessibility_tree,
    "list_directory": _list_directory,
    "vm_screen_size": _vm_screen_size,
    "rule": _rule,
    "time_diff_range": _time_diff_range,
}


async def _upstream(
    config: Config, context: GetterContext, files: dict[str, str | None] | None = None
) -> object:
    addresses = context.guest.addresses
    view = GuestView(
        cache_dir=str(context.cache_dir),
        screen=context.guest.screen,
        server=addresses.server,
        chromium=addresses.chromium,
        vlc=addresses.vlc,
        files=files or {},
    )
    return await context.pool.call(GetterCall(config["type"], config, view), timeout_s=context.timeout_s)


async def _execute(config: Config, context: GetterContext) -> CommandResult:
    command = _given_value(config, "command")
    if isinstance(command, list):
        command = [str(word) for word in command]
    elif not isinstance(command, str):
        raise GetterConfigError(f"command: a string or a list of words, not {command!r:.50}")
    return await context.guest.client.execute(command, shell=bool(config.get("shell", False)))


async def _copy(path: str, name: str, context: GetterContext) -> str | None:
    try:
        content = await context.guest.client.read_file(path)
    except GuestFileMissing:
        return None
    return str(await store(context.cache_dir, name, content))


def _pairs(config: Config) -> list[tuple[str, str]]:
    """(source, name of the copy) of every file asked for."""
    if not config.get("multi", False):
        return [(_text(config, "path"), _text(config, "dest"))]
    paths, names = _texts(config, "path"), _texts(config, "dest")
    if len(paths) != len(names):
        raise GetterConfigError(f"dest: {len(names)} names for {len(paths)} files")
    return list(zip(paths, names, strict=True))


def _given(config: Config, copies: list[str | None]) -> object:
    """Those of the copies that the metric gets: one as it is, several as a list."""
    wanted = config.get("gives", [0])
    if not isinstance(wanted, list):
        raise GetterConfigError(f"gives: a list of indices, not {wanted!r:.50}")
    given = [copy for index, copy in enumerate(copies) if index in wanted]
    return given[0] if len(given) == 1 else given


def _given_value(config: Config, name: str) -> Any:
    if name not in config:
        raise GetterConfigError(f"{name!r} is missing")
    return config[name]


def _text(config: Config, name: str) -> str:
    value = _given_value(config, name)
    if not isinstance(value, str):
        raise GetterConfigError(f"{name}: a string, not {value!r:.50}")
    return value


def _texts(config: Config, name: str) -> list[str]:
    values = _given_value(config, name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise GetterConfigError(f"{name}: a list of strings, not {values!r:.50}")
    return values
