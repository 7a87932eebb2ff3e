"""An env-server in a thread of its own whose simulated guests keep a record of everything that was done to them.

The server is the real one: uvicorn on a socket, pool, sessions, `GuestDesktop`, evaluator processes. What a test
controls is time (a clock that it sets) and where a guest waits (a gate for one task's tag).
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from arpo.desktop.base import Desktop
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import CommandResult, GuestError, Settle
from arpo.protocol.actions import Action
from arpo.providers.base import Guest
from arpo.providers.simulated.guest import SimulatedGuest
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.server.service import ServerSettings, bind, running_server
from arpo.server.tokens import TokenFile

SCREEN = (640, 480)
FILE = "/home/user/run.txt"

T = TypeVar("T")


def task_of(tag: str, goal: str) -> dict[str, object]:
    """A task whose screen shows its tag, and whose score is 1 when the goal was typed behind it and saved."""
    return {
        "id": tag,
        "instruction": f"Type {goal!r} and save.",
        "config": [
            {"type": "execute", "parameters": {"command": ["sh", "-c", f"printf '{tag}:' > {FILE}"]}},
            {"type": "launch", "parameters": {"command": ["notes", FILE]}},
        ],
        "evaluator": {
            "func": "exact_match",
            "result": {"type": "vm_command_line", "command": ["cat", FILE]},
            "expected": {"type": "rule", "rules": {"expected": f"{tag}:{goal}"}},
        },
    }


class Recorder:
    """A guest that knows whose it is and waits at gates; the rest is the simulated guest's.

    tag: of the task that was set up on it. evaluations: how often an evaluator read its file.
    """

    def __init__(self, guest: SimulatedGuest, gates: dict[str, asyncio.Event]) -> None:
        self.guest = guest
        self.tag = ""
        self.evaluations = 0
        self._gates = gates

    def __getattr__(self, name: str):
        return getattr(self.guest, name)

    @property
    def performed(self) -> list[Action]:
        """Every action that was performed on it."""
        return self.guest.applied

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        await self._gate()
        await self.guest.act(actions, settle)

    async def execute(self, command: str | Sequence[str], **how) -> CommandResult:
        setup = re.search(r"printf '(\w+):'", " ".join(command))
        if setup:
            assert not self.tag, f"{setup[1]} was set up on the guest of {self.tag}"
            self.tag = setup[1]
        await self._gate()
        result = await self.guest.execute(command, **how)
        self.evaluations += command[0] == "cat"
        return result

    async def is_lost(self) -> bool:
        try:
            await self.guest.screenshot()
        except GuestError:
            return True
        return False

    async def _gate(self) -> None:
        gate = self._gates.get(self.tag)
        if gate is not None:
            await gate.wait()


class RecordingProvider(SimulatedProvider):
    """Every guest that ever was is in `recorders`."""

    def __init__(self) -> None:
        super().__init__(SCREEN)
        self.recorders: list[Recorder] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def start(self) -> Guest:
        guest = await super().start()
        self.recorders.append(Recorder(self.guests[guest.id], self.gates))
        return replace(guest, client=self.recorders[-1])


class Clock:
    """Seconds that pass when a test says so. reads: how often it was looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


class LoopThread:
    """An event loop in a thread, for as long as a test takes; evaluator processes belong to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.evaluators = EvaluatorPool(workers=1)

    def run(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        self.run(self.evaluators.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class ErrorLog(logging.Handler):
    """What was logged as an error: bugs, and exceptions that nobody looked at."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


class RecordedServer:
    """One env-server on a free port; its guests, its clock, its gates and its errors."""

    def __init__(self, thread: LoopThread, tokens: Path, capacity: int) -> None:
        self.clock = Clock()
        self.provider = RecordingProvider()
        self.errors = ErrorLog()
        logging.getLogger().addHandler(self.errors)
        self._thread = thread
        self._leave = asyncio.Event()
        url: asyncio.Future[str] = thread.loop.create_future()
        self._life = asyncio.run_coroutine_threadsafe(self._serve(tokens, capacity, url), thread.loop)

        async def started() -> str:
            await asyncio.wait({url, asyncio.wrap_future(self._life)}, return_when=asyncio.FIRST_COMPLETED)
            return url.result()

        self.url = thread.run(started())

    async def _serve(self, tokens: Path, capacity: int, url: asyncio.Future[str]) -> None:
        settings = ServerSettings(
            provider="simulated", screen=SCREEN, capacity=capacity, drain_grace_s=0.0, margin_s=0.0
        )
        async with running_server(
            self._desktop, bind("127.0.0.1", 0), TokenFile(tokens), settings, clock=self.clock
        ) as server:
            url.set_result(server.url)
            await self._leave.wait()

    async def _desktop(self) -> Desktop:
        desktop = GuestDesktop(self.provider, evaluators=self._thread.evaluators)
        await desktop.start()
        return desktop

    def recorder(self, tag: str) -> Recorder:
        """The guest on which a task was set up."""
        (found,) = [recorder for recorder in self.provider.recorders if recorder.tag == tag]
        return found

    def running(self) -> list[Recorder]:
        """The guests that have not been stopped."""
        guests = list(self.provider.guests.values())
        return [recorder for recorder in self.recorders() if recorder.guest in guests]

    def hold(self, tag: str) -> None:
        """The next call to the guest of a tag waits, until `let_go`."""
        self.provider.gates[tag] = asyncio.Event()

    def let_go(self, tag: str) -> None:
        gate = self.provider.gates.pop(tag, None)
        if gate is not None:
            self._thread.loop.call_soon_threadsafe(gate.set)

    def forget(self, tag: str) -> None:
        """Nobody waits at a tag's gate any more."""
        self.provider.gates.pop(tag, None)

    def recorders(self) -> list[Recorder]:
        """Every guest that ever was."""
        return list(self.provider.recorders)

    def lose(self, tag: str) -> None:
        """The guest of a tag is gone."""
        self._thread.loop.call_soon_threadsafe(self.recorder(tag).guest.lose)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and the reaper look at it."""
        self.clock.now += seconds
        # Nothing but the reaper reads the clock now. At the second look it has acted on the first.
        seen, deadline = self.clock.reads, time.monotonic() + 10
        while self.clock.reads < seen + 2:
            assert time.monotonic() < deadline, "the reaper sleeps"
            time.sleep(0.001)

    def stop(self) -> None:
        """End the server. Every guest that ever was must be gone then."""
        for tag in list(self.provider.gates):
            self.let_go(tag)
        self._thread.loop.call_soon_threadsafe(self._leave.set)
        try:
            self._life.result(60)
        finally:
            logging.getLogger().removeHandler(self.errors)
        for recorder in self.provider.recorders:
            assert self._thread.run(recorder.is_lost()), "a desktop was left behind"
