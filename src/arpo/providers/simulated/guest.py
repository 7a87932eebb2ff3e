"""The simulated desktop behind the guest's interface.

Invariant: a guest that is lost refuses every call, like a machine that was switched off; one that is frozen answers
none until it is lost, like a machine whose processes were stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arpo.guest_client import CommandResult, GuestError, GuestFileMissing, Settle
from arpo.protocol.actions import Action
from arpo.providers.simulated.drawing import render
from arpo.providers.simulated.machine import Machine
from arpo.telemetry.phases import add_phase, phase


class SimulatedGuest:
    """A `GuestClient` in this process.

    applied: every action that was performed, in order; to prove that each was performed once.
    step_latency_s: how long `act` takes at least, to stand for a slower desktop.
    lost_after, frozen_after: the guest is lost, or frozen, when it is to perform the next batch of actions after this
    many; None: never.
    fails_reads: whether files, folders and the accessibility tree cannot be read.
    """

    def __init__(
        self,
        screen: tuple[int, int],
        *,
        step_latency_s: float = 0.0,
        lost_after: int | None = None,
        frozen_after: int | None = None,
        fails_reads: bool = False,
    ) -> None:
        self.machine = Machine(screen)
        self.applied: list[Action] = []
        self._step_latency_s = step_latency_s
        self._lost_after = lost_after
        self._frozen_after = frozen_after
        self._fails_reads = fails_reads
        self._batches = 0
        self._frozen = False
        self._lost = asyncio.Event()
        self._picture: bytes | None = None

    def lose(self) -> None:
        """From now on every call fails."""
        self._lost.set()

    def freeze(self) -> None:
        """From now on no call ends before the guest is lost."""
        self._frozen = True

    async def screenshot(self) -> bytes:
        """The screen as PNG; drawn only when something may have changed it."""
        await self._answer()
        if self._picture is None:
            self._picture = render(self.machine.scene(), self.machine.screen)
        return self._picture

    async def act(self, actions: Sequence[Action], settle: Settle) -> None:
        """Perform actions; nothing moves on its own here, so there is nothing to wait for."""
        with phase("act"):
            if self._batches == self._lost_after:
                self.lose()
            if self._batches == self._frozen_after:
                self.freeze()
            await self._answer()
            self._batches += 1
            if self._step_latency_s:
                await asyncio.sleep(self._step_latency_s)
                await self._answer()
            for action in actions:
                self._picture = None
                self.machine.apply(action)
                self.applied.append(action)
        add_phase("settle", 0.0)

    async def settle(self, settle: Settle) -> None:
        """The screen is always quiet."""
        with phase("settle"):
            await self._answer()

    async def execute(
        self, command: str | Sequence[str], *, shell: bool = False, timeout_s: float = 120.0
    ) -> CommandResult:
        """Run a command; it ends at once."""
        await self._answer()
        self._picture = None
        return self.machine.shell.run(command, shell=shell)

    async def launch(self, command: str | Sequence[str], *, shell: bool = False) -> None:
        """Start an application. An unknown one is a GuestError: there is nothing to wait for."""
        result = await self.execute(command, shell=shell)
        if result.returncode != 0:
            raise GuestError(result.error.strip())

    async def open_file(self, path: str) -> None:
        """Open a file in Notes or a folder in Files."""
        await self._answer()
        self._picture = None
        self.machine.start_app(["files" if self.machine.files.is_folder(path) else "notes", path])

    async def activate_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Raise a window; False when there is none of that name."""
        await self._answer()
        self._picture = None
        app = self.machine.find_window(name, strict=strict, by_class=by_class)
        if app is not None:
            self.machine.raise_window(app)
        return app is not None

    async def close_window(self, name: str, *, strict: bool = False, by_class: bool = False) -> bool:
        """Close a window; False when there is none of that name."""
        await self._answer()
        self._picture = None
        app = self.machine.find_window(name, strict=strict, by_class=by_class)
        if app is not None:
            self.machine.windows.remove(app)
        return app is not None

    async def read_file(self, path: str) -> bytes:
        """A file's content. Raises `GuestFileMissing`."""
        await self._answer(reads=True)
        if not self.machine.files.is_file(path):
            raise GuestFileMissing(path)
        return self.machine.files.read(path)

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file, making its folders."""
        await self._answer()
        try:
            self.machine.files.write(path, data)
        except OSError as error:
            raise GuestError(str(error)) from error

    async def list_directory(self, path: str) -> dict[str, object]:
        """OSWorld's directory tree of `path`. Raises `GuestFileMissing`."""
        await self._answer(reads=True)
        if not self.machine.files.is_folder(path):
            raise GuestFileMissing(path)
        return self.machine.files.tree(path)

    async def terminal_output(self) -> str | None:
        """There is no terminal."""
        await self._answer()
        return None

    async def accessibility_tree(self) -> str:
        """Windows and controls as OSWorld's XML."""
        await self._answer(reads=True)
        return self.machine.accessibility_tree()

    async def close(self) -> None:
        """There is no connection."""

    async def _answer(self, *, reads: bool = False) -> None:
        """Begin to answer a call, if the guest can."""
        if self._frozen:
            await self._lost.wait()
        if self._lost.is_set():
            raise GuestError("the simulated guest is gone")
        if reads and self._fails_reads:
            raise GuestError("injected failure of reading")
