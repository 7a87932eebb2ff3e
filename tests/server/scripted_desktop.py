"""A desktop in this process whose behaviour a test scripts, and an env-server that serves such desktops.

The screen is a PNG that counts what was done to it, so a step that was applied twice can be seen.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from arpo.client import EnvClient
from arpo.config.sections import Timeouts
from arpo.protocol.actions import Action
from arpo.providers.base import ProviderError
from arpo.server.service import RunningServer, ServerSettings, bind, running_server
from arpo.server.tokens import TokenFile
from arpo.tasks.model import Task

TOKEN = "a-token-that-no-log-may-show"
SCREEN = (160, 120)
TASK = {"id": "t", "instruction": "do it", "evaluator": {"func": "infeasible"}}


def picture(number: int) -> bytes:
    """A screen that shows a number."""
    data = io.BytesIO()
    Image.new("RGB", SCREEN, (number % 256, number // 256, 7)).save(data, "PNG")
    return data.getvalue()


@dataclass
class Script:
    """What the desktops of one test do; `world` counts what happened to all of them."""

    reset: Callable[[ScriptedDesktop], object] = lambda desktop: None
    execute: Callable[[ScriptedDesktop], object] = lambda desktop: None
    evaluate: Callable[[ScriptedDesktop], object] = lambda desktop: 1.0
    start: Callable[[int], object] = lambda count: None
    clean: Callable[[ScriptedDesktop], object] = lambda desktop: None
    screen: Callable[[int], bytes] = picture
    started: int = 0
    closed: int = 0
    executed: list[list[Action]] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)

    async def desktop(self) -> ScriptedDesktop:
        """The pool's factory."""
        self.started += 1
        await _outcome(self.start(self.started))
        return ScriptedDesktop(self, self.started)


class ScriptedDesktop:
    """Implements `Desktop`; a script's result is awaited if it can be, and raised if it is an exception."""

    screen = SCREEN

    def __init__(self, script: Script, number: int) -> None:
        self.script = script
        self.number = number
        self.open = True
        self.actions = 0

    async def clean(self) -> None:
        await _outcome(self.script.clean(self))

    async def reset(self, task: Task) -> bytes:
        self.script.resets.append(task.id)
        await _outcome(self.script.reset(self))
        self.actions = 0
        return self.script.screen(0)

    async def execute(self, actions: Sequence[Action]) -> bytes:
        await _outcome(self.script.execute(self))
        self.script.executed.append(list(actions))
        self.actions += len(actions)
        return self.script.screen(self.actions)

    async def evaluate(self) -> float:
        return await _outcome(self.script.evaluate(self))

    async def close(self) -> None:
        assert self.open, "closed twice"
        self.open = False
        self.script.closed += 1


async def _outcome(result):
    if asyncio.iscoroutine(result):
        result = await result
    if isinstance(result, Exception):
        raise result
    return result


@dataclass(frozen=True)
class Harness:
    """A running env-server, a client of it, and the script of its desktops."""

    server: RunningServer
    client: EnvClient
    script: Script

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def env_server(
    folder: Path, script: Script | None = None, *, capacity: int = 1, port: int = 0, **settings
) -> AsyncIterator[Harness]:
    """An env-server on a real socket in this event loop, ready to lease."""
    script = script or Script()
    token_file = folder / "token"
    if not token_file.exists():
        token_file.touch(mode=0o600)
        token_file.write_text(TOKEN + "\n")
    base = ServerSettings(
        provider="scripted", screen=SCREEN, capacity=capacity, drain_grace_s=1.0, margin_s=0.0
    )
    async with (
        running_server(
            script.desktop, bind("127.0.0.1", port), TokenFile(token_file), replace(base, **settings)
        ) as server,
        EnvClient(server.url, TOKEN) as client,
    ):
        yield Harness(server, client, script)


def limits(**seconds: float) -> Timeouts:
    """Time-outs of single operations."""
    return Timeouts(**seconds)


def lost() -> Exception:
    return ProviderError("no guest today")
