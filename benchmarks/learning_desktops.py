"""Simulated desktops in this process, behind the interface of the env-server's client.

An episode runs the code that it runs behind an env-server (guest, task setup, OSWorld's evaluator); what is left out is
HTTP, which costs more than everything else where a step takes a millisecond.
Invariant: a desktop serves one session at a time and goes back to the pool when the session ends.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from learning_suite import SCREEN

from arpo.client.contact import Contact
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.protocol.actions import TERMINAL, Action
from arpo.protocol.messages import Observation, Screenshot
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.validate import parse_task


@dataclass
class LocalSession:
    """What an episode needs of `arpo.client.Session`."""

    desktop: GuestDesktop
    observation: Observation
    free: asyncio.Queue[GuestDesktop]
    done: bool = False

    async def __aenter__(self) -> LocalSession:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.free.put_nowait(self.desktop)

    async def step(self, actions: Sequence[Action]) -> LocalSession:
        """Perform a turn's actions; the session itself is the reply (`observation`, `done`)."""
        self.observation = observe(await self.desktop.execute(actions))
        self.done = any(isinstance(action, TERMINAL) for action in actions)
        return self

    async def evaluate(self) -> float:
        """OSWorld's score."""
        return await self.desktop.evaluate()


class LocalEnv:
    """What an episode needs of `arpo.client.EnvClient`; `local_env` makes one."""

    def __init__(self, desktops: Sequence[GuestDesktop]) -> None:
        self.contact = Contact()
        self._free: asyncio.Queue[GuestDesktop] = asyncio.Queue()
        for desktop in desktops:
            self._free.put_nowait(desktop)

    async def open_session(self, task: Mapping[str, Any], options: object) -> LocalSession:
        """Reset a free desktop to a task, waiting for one if all are in use."""
        desktop = await self._free.get()
        try:
            picture = await desktop.reset(parse_task(dict(task), "the task"))
        except BaseException:
            self._free.put_nowait(desktop)
            raise
        return LocalSession(desktop, observe(picture), self._free)


def observe(picture: bytes) -> Observation:
    """The observation of a screenshot."""
    width, height = SCREEN
    sha256 = hashlib.sha256(picture).hexdigest()
    return Observation(screenshot=Screenshot(width=width, height=height, sha256=sha256, data=picture))


@asynccontextmanager
async def local_env(number: int) -> AsyncIterator[LocalEnv]:
    """A number of desktops, stopped at the end."""
    evaluators = EvaluatorPool(workers=1)
    desktops = [GuestDesktop(SimulatedProvider(SCREEN), evaluators=evaluators) for _ in range(number)]
    try:
        yield LocalEnv(desktops)
    finally:
        for desktop in desktops:
            await desktop.close()
        await evaluators.close()
