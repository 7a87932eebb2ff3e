"""The golden state: a guest that has booted, answers and is at rest, from which every desktop goes on.

QEMU saves it in three parts that belong together, because the machine stands still while they are made: its disk (what
the boot wrote, over the base image), its memory (a file that desktops map page by page as they need it: nothing is
copied, and pages that nobody writes to are shared by all), and the state of its devices (some megabytes, kept here).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from arpo.providers.base import ProviderError
from arpo.providers.qemu import command_line
from arpo.providers.qemu.command_line import Files, Hardware
from arpo.providers.qemu.machine import Machine
from arpo.providers.qemu.preflight import qemu_img

_MEMORY_STAYS_IN_ITS_FILE = [{"capability": "x-ignore-shared", "state": True}]
_CHUNK = 1 << 20

Command = Callable[[Hardware, Files, int], list[str]]


@dataclass(frozen=True)
class Golden:
    """What desktops start from. devices: the state of the machine's devices."""

    hardware: Hardware
    files: Files
    devices: bytes

    async def start(self, folder: Path) -> Machine:
        """A machine that stands where the state was saved; the command `cont` lets it go on. Raises ProviderError."""
        async with _launched(command_line.desktop, self.hardware, self.files, folder) as (machine, state):
            await machine.command("migrate-incoming", uri="fd:state")
            with contextlib.suppress(OSError):  # QEMU has ended: `migrated` says why
                await asyncio.get_running_loop().sock_sendall(state, self.devices)
            await machine.migrated()
            return machine

    def close(self) -> None:
        """Let go of the files. With the last machine that has them they are gone."""
        _close(self.files)


async def make_golden(
    hardware: Hardware, image: Path, folder: Path, ready: Callable[[Machine], Awaitable[None]]
) -> Golden:
    """Boot the image and save the state of the machine. Raises ProviderError.

    image: is read and never written. folder: has room for the machine's memory and what it writes to its disk; the files
    have no names there. ready: waits until the guest is as desktops should find it.
    """
    files = Files(await _disk(image, folder), _memory(hardware, folder))
    try:
        async with _launched(command_line.golden, hardware, files, folder) as (machine, state):
            await ready(machine)
            await machine.command("stop")
            saving = asyncio.create_task(_received(state))
            try:
                await machine.command("migrate", uri="fd:state")
                await machine.migrated()
                await machine.end()  # closes its end of the socket
                return Golden(hardware, files, await saving)
            finally:
                saving.cancel()
    except BaseException:
        _close(files)
        raise


@asynccontextmanager
async def _launched(
    command: Command, hardware: Hardware, files: Files, folder: Path
) -> AsyncIterator[tuple[Machine, socket.socket]]:
    """A machine, and a socket whose other end it knows as `state`. It is ended upon an error."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        machine = Machine(
            lambda monitor: command(hardware, files, monitor), folder, (files.disk, files.memory)
        )
        try:
            await machine.launch()
            await machine.give(theirs.fileno(), "state")
            theirs.close()
            await machine.command("migrate-set-capabilities", capabilities=_MEMORY_STAYS_IN_ITS_FILE)
            yield machine, ours
        except BaseException:
            await asyncio.shield(machine.end())
            raise


async def _received(state: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    chunks = []
    while chunk := await loop.sock_recv(state, _CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)


async def _disk(image: Path, folder: Path) -> int:
    """A descriptor of a new layer over the image."""
    path = folder / f"{secrets.token_hex(4)}.qcow2"
    layer = ("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(path))
    try:
        code, said = await qemu_img(*layer)
        if code != 0:
            raise ProviderError(f"no layer over {image} can be made: {said}")
        return os.open(path, os.O_RDWR)
    finally:
        path.unlink(missing_ok=True)


def _memory(hardware: Hardware, folder: Path) -> int:
    """A descriptor of a sparse file as large as the machine's memory."""
    path = folder / secrets.token_hex(4)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    path.unlink()
    os.ftruncate(fd, hardware.memory_mib << 20)
    return fd


def _close(files: Files) -> None:
    os.close(files.disk)
    os.close(files.memory)
