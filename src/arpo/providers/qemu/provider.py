"""Virtual machines by QEMU: every desktop goes on from one golden state of a read-only image.

Invariants
- The image is never written to. A desktop writes to a layer and to memory of its own, which end with its process.
- A desktop is a process of its own; a reset is a new one from the golden state, so a desktop is clean by construction.
- QEMU ends with the env-server, also after SIGKILL, and its files have no names: nothing is left.
- Guests ask for no password: their ports are on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arpo.guest_client import GuestError, Settle
from arpo.protocol.problems import ConfigError
from arpo.providers.base import Addresses, Guest, ProviderError
from arpo.providers.osworld.running import Rest, Running, reached
from arpo.providers.qemu import preflight
from arpo.providers.qemu.clock import set_clock
from arpo.providers.qemu.command_line import GUEST_PORTS, Hardware, Network
from arpo.providers.qemu.golden import Golden, make_golden
from arpo.providers.qemu.machine import Machine
from arpo.scratch import ScratchFolder

_log = logging.getLogger(__name__)

_SHARE = 0.9  # of the time for a start: the rest is for saying what was late
_AT_REST = Settle(quiet_s=3.0, ceiling_s=60.0)  # the server answers before a session's programs are all there
_NO_SERVER = (
    "raise --start-timeout-s (a first boot without KVM takes many minutes), or see that OSWorld's server starts with the "
    "image and listens on port 5000"
)


class QemuProvider:
    """Implements `Provider` over QEMU.

    screen: width and height of the guests' screen in pixels; OSWorld's image has 1920x1080.
    desktops: how many will be asked for at once. start_timeout_s: how long a start may take; the first one boots.
    image: the guests' disk (qcow2), shared by all, never written. memory: as `4G`; cpus: of each guest.
    accel: kvm, tcg (emulation), or auto: KVM if it can be had, else emulation with a warning.
    network: none, or user: through this host, whose own loopback services the guest can then reach, too.
    firmware: an OVMF.fd for images that start by UEFI.
    folder: for memory and layers; unset: the system's temporary folder.
    sudo_password: of the guest's user, for setting the clock. arguments: further ones for QEMU.
    """

    name = "qemu"

    def __init__(
        self,
        *,
        screen: tuple[int, int] = (1920, 1080),
        desktops: int = 1,
        start_timeout_s: float = 120.0,
        image: str | None = None,
        memory: str = "4G",
        cpus: int = 4,
        accel: Literal["auto", "kvm", "tcg"] = "auto",
        network: Network = "none",
        firmware: str | None = None,
        folder: str | None = None,
        sudo_password: str = "password",  # noqa: S107 - what OSWorld's images have
        arguments: str | Sequence[str] = (),
    ) -> None:
        self._screen = screen
        self._desktops = desktops
        self._start_s = start_timeout_s * _SHARE
        self._image = Path(image).expanduser().resolve() if image is not None else None
        self._memory_mib = preflight.megabytes("memory", memory)
        self._cpus = cpus
        self._accel = accel
        self._network: Network = network
        self._firmware = Path(firmware).expanduser().resolve() if firmware is not None else None
        self._base = Path(folder).expanduser().resolve() if folder is not None else None
        self._sudo_password = sudo_password
        self._arguments = (arguments,) if isinstance(arguments, str) else tuple(arguments)
        self._hardware: Hardware | None = None
        self._folder: ScratchFolder | None = None
        self._making: asyncio.Task[Golden] | None = None
        self._machines: set[Machine] = set()
        self._leased: dict[str, tuple[Machine, Running]] = {}
        self._numbers = itertools.count(1)

    async def preflight(self) -> None:
        """Check programs, KVM, the image and the space. Raises `ConfigError` that names what is missing and the fix."""
        preflight.check_programs()
        await preflight.check_image(preflight.given_image(self._image))
        if self._firmware is not None and not self._firmware.is_file():
            raise ConfigError(
                f"qemu provider: firmware={self._firmware} is no file; fix: apt-get install ovmf, and "
                "firmware=/usr/share/ovmf/OVMF.fd"
            )
        base = self._base or Path(tempfile.gettempdir())
        if not base.is_dir():
            raise ConfigError(f"qemu provider: folder={base} is no folder; fix: make it")
        preflight.check_space(base, self._memory_mib, self._desktops)
        if self._network == "user":
            _log.warning(
                "qemu provider: with network=user, programs on a desktop can reach the services on this host's loopback "
                "interface, other desktops' among them"
            )
        self._hardware = await self._described()

    async def start(self) -> Guest:
        """A desktop from the golden state, which the first start makes. Raises `ProviderError`."""
        begun = time.monotonic()
        folder = self._scratch()
        preflight.check_still_space(folder)
        golden = await self._golden()
        machine = await golden.start(folder)
        self._machines.add(machine)
        try:
            ports = await machine.ports()
            running = await self._awoken(machine, ports, max(self._start_s - (time.monotonic() - begun), 1.0))
        except BaseException:
            await asyncio.shield(self._end(machine))
            raise
        self._leased[running.guest.id] = machine, running
        return running.guest

    async def reset(self, guest: Guest) -> Guest:
        """A fresh desktop in place of a used one. Raises `ProviderError`; the used one is gone either way."""
        await self.stop(guest)
        return await self.start()

    async def expose(self, guest: Guest) -> Guest:
        """The guest with its addresses on this host's loopback."""
        return await self._lease(guest)[1].exposed()

    async def pause(self, guest: Guest) -> None:
        """Freeze the machine. Raises `ProviderError`."""
        await self._lease(guest)[1].rest.pause_guest()

    async def resume(self, guest: Guest) -> None:
        """Let it go on, with the right time. Raises `ProviderError`."""
        await self._lease(guest)[1].rest.resume_guest()

    async def stop(self, guest: Guest) -> None:
        """End the machine; nothing of it is left."""
        machine, running = self._leased.pop(guest.id, (None, None))
        if machine is not None and running is not None:
            await running.forget()
            await asyncio.shield(self._end(machine))

    async def close(self) -> None:
        """End every machine, the golden state and this provider's folder."""
        await asyncio.gather(*(self.stop(running.guest) for _, running in list(self._leased.values())))
        await asyncio.gather(*(self._end(machine) for machine in list(self._machines)))
        making, self._making = self._making, None
        if making is not None:
            making.cancel()
            (golden,) = await asyncio.gather(making, return_exceptions=True)
            if isinstance(golden, Golden):
                golden.close()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    async def _golden(self) -> Golden:
        """Made once. A start that is cancelled meanwhile does not end the making of it: the next start wants it."""
        if self._making is None or (self._making.done() and _failed(self._making)):
            self._making = asyncio.create_task(self._boot())
        return await asyncio.shield(self._making)

    async def _boot(self) -> Golden:
        try:
            image = preflight.given_image(self._image)
            self._hardware = self._hardware or await self._described()
        except ConfigError as error:  # started without a preflight
            raise ProviderError(str(error)) from error
        begun = time.monotonic()
        golden = await make_golden(self._hardware, image, self._scratch(), self._booted)
        _log.info(
            "qemu: %s has booted in %.1f s (%s); desktops start from there",
            image.name, time.monotonic() - begun, self._hardware.accelerator,
        )  # fmt: skip
        return golden

    async def _booted(self, machine: Machine) -> None:
        """Wait until the guest answers and its screen is at rest; leaves no connection open."""
        running = await self._reached("golden", machine, await machine.ports(), self._start_s)
        try:
            await running.guest.client.settle(_AT_REST)
            await set_clock(_server(running), self._sudo_password)  # better to hear of it now
        except GuestError as error:
            raise ProviderError(f"the guest stopped answering after its boot: {error}") from error
        finally:
            await running.forget()

    async def _awoken(self, machine: Machine, ports: dict[int, int], timeout_s: float) -> Running:
        await machine.command("cont")
        running = await self._reached(
            f"qemu-{next(self._numbers)}-{secrets.token_hex(3)}", machine, ports, timeout_s
        )
        try:
            await set_clock(_server(running), self._sudo_password)
        except BaseException:
            await running.forget()
            raise
        return running

    async def _reached(self, name: str, machine: Machine, ports: dict[int, int], timeout_s: float) -> Running:
        server, chromium, vlc = (f"127.0.0.1:{ports[port]}" for port in GUEST_PORTS)

        async def pause() -> None:
            await machine.command("stop")

        async def resume() -> None:
            await machine.command("cont")
            await set_clock(server, self._sudo_password)

        return await reached(
            name,
            Addresses(server=server, chromium=chromium, vlc=vlc),
            Rest(pause, resume, None),
            self._screen,
            timeout_s=timeout_s,
            fix=_NO_SERVER,
            alive=machine.check_running,
        )

    async def _described(self) -> Hardware:
        return Hardware(
            memory_mib=self._memory_mib,
            cpus=self._cpus,
            accelerator=await preflight.accelerator(self._accel, self._arguments),
            screen=self._screen,
            network=self._network,
            firmware=self._firmware,
            arguments=self._arguments,
        )

    def _scratch(self) -> Path:
        if self._folder is None:
            self._folder = ScratchFolder("arpo-qemu-", self._base)
        return self._folder.path

    async def _end(self, machine: Machine) -> None:
        await machine.end()
        self._machines.discard(machine)

    def _lease(self, guest: Guest) -> tuple[Machine, Running]:
        if guest.id not in self._leased:
            raise ProviderError(f"there is no guest {guest.id}")
        return self._leased[guest.id]


def _failed(task: asyncio.Task[Golden]) -> bool:
    return task.cancelled() or task.exception() is not None


def _server(running: Running) -> str:
    return str(running.addresses.server)
