"""Virtual machines of VMware Fusion and Workstation, by OSWorld's VMwareProvider and `vmrun`.

Invariants
- A machine belongs to one desktop at a time, and to one env-server of this host: a lock that ends with its process
  says so.
- A desktop begins with the machine's snapshot: starting is reverting, whatever ran before.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Addresses, Guest, ProviderError
from arpo.providers.osworld import upstream
from arpo.providers.osworld.attempt import Attempt, CommandFailed, bounded
from arpo.providers.osworld.running import Rest, Running, reached
from arpo.providers.osworld.vmrun import Vmrun, explained, find_vmrun, is_booting

log = logging.getLogger(__name__)

T = TypeVar("T")

_COMMAND_S = 30.0
_STOP_S = 15.0
_SHARE = 0.9  # of the time for a start: the rest is for saying what was late
_NO_SERVER = (
    "start OSWorld's server (port 5000) in the machine, let its firewall pass, and take the snapshot again"
)
_IMAGES = "https://huggingface.co/datasets/xlangai/ubuntu_osworld"


class VmwareProvider:
    """Implements `Provider` over virtual machines that a person has installed.

    screen: width and height of the guests' screen in pixels; OSWorld's machines have 1920x1080.
    desktops: how many will be asked for at once. start_timeout_s: how long a start may take.
    vm_path: one or several .vmx files; each is one desktop.
    snapshot: what every desktop begins with. vmrun: VMware's program, else looked for.
    gui: show the machines' windows.
    pause_after_s: pause a machine that is asked nothing for this many seconds; None: never.
    """

    name = "vmware"

    def __init__(
        self,
        *,
        screen: tuple[int, int] = (1920, 1080),
        desktops: int = 1,
        start_timeout_s: float = 120.0,
        vm_path: str | Sequence[str] = (),
        snapshot: str = "init_state",
        vmrun: str | None = None,
        gui: bool = False,
        pause_after_s: float | None = None,
    ) -> None:
        paths = [vm_path] if isinstance(vm_path, str) else vm_path
        self._machines = list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))
        self._screen = screen
        self._desktops = desktops
        self._boot_s = start_timeout_s * _SHARE
        self._snapshot = snapshot
        self._given_vmrun = vmrun
        self._vmrun = ""
        self._gui = gui
        self._pause_after_s = pause_after_s
        self._free = list(self._machines)
        self._leased: dict[str, tuple[Path, Running]] = {}
        self._starting: set[asyncio.Task[Guest]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._locks: dict[Path, FileLock] = {}

    async def preflight(self) -> None:
        """Raises ConfigError that names what is missing and the fix."""
        if not self._machines:
            raise ConfigError(
                "vmware provider: no machine given; fix: --provider-option vm_path=/path/to/Ubuntu.vmx "
                f"(OSWorld's machines: {_IMAGES})"
            )
        if self._desktops > len(self._machines):
            raise ConfigError(
                f"vmware provider: {self._desktops} desktops need as many machines, and {len(self._machines)} given; "
                f"fix: --capacity {len(self._machines)} (and no --spares), or a vm_path for every desktop"
            )
        for vm in self._machines:
            if vm.suffix != ".vmx" or not vm.is_file():
                raise ConfigError(f"vmware provider: {vm} is no .vmx file; fix: vm_path=/path/to/machine.vmx")
        upstream.check_vmware()
        self._vmrun = find_vmrun(self._given_vmrun)
        try:
            for vm in self._machines:
                self._own(vm)
                await self._check_snapshot(vm)
        except ProviderError as error:
            await self.close()
            raise ConfigError(f"vmware provider: {error}") from error

    async def start(self) -> Guest:
        """Bring up a machine at its snapshot and wait until its guest serves. Raises ProviderError."""
        while not self._free and self._ending:
            await asyncio.wait(self._ending, return_when=asyncio.FIRST_COMPLETED)
        if not self._free:
            raise ProviderError(
                f"all {len(self._machines)} machines are in use; fix: one more vm_path, or a lower --capacity"
            )
        return await self._brought_up(self._free.pop(0))

    async def reset(self, guest: Guest) -> Guest:
        """The same machine at its snapshot again. Raises ProviderError."""
        vm, running = self._leased.pop(guest.id, (None, None))
        if vm is None or running is None:
            return await self.start()
        await running.forget()
        return await self._brought_up(vm)

    async def expose(self, guest: Guest) -> Guest:
        """The guest with its addresses in the machine's network."""
        return await self._running(guest).exposed()

    async def pause(self, guest: Guest) -> None:
        """Freeze the machine. Raises ProviderError."""
        await self._running(guest).rest.pause_guest()

    async def resume(self, guest: Guest) -> None:
        """Undo `pause`. Raises ProviderError."""
        await self._running(guest).rest.resume_guest()

    async def stop(self, guest: Guest) -> None:
        """Power the machine off; what it was doing is lost, and the next start reverts it anyway."""
        vm, running = self._leased.pop(guest.id, (None, None))
        if vm is None or running is None:
            return
        await running.forget()
        await asyncio.shield(self._end(vm))

    async def close(self) -> None:
        """Power off every machine that is in use, those that are starting included, and let go of all."""
        for task in self._starting:
            task.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        await asyncio.gather(*(self.stop(running.guest) for _, running in list(self._leased.values())))
        if self._ending:
            await asyncio.wait(self._ending)
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()

    async def _brought_up(self, vm: Path) -> Guest:
        async def bring_up() -> Guest:
            try:
                return await self._bring_up(vm)
            except BaseException:
                self._end(vm)  # not waited for: whoever gave a time for the start wants to hear what was late
                raise

        task = asyncio.create_task(bring_up())  # of its own, so that `close` can end it
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return await task

    def _end(self, vm: Path) -> asyncio.Task[None]:
        """Power a machine off, by itself; then it can be had again."""

        async def end() -> None:
            await self._power_off(vm)
            self._free.append(vm)

        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _bring_up(self, vm: Path) -> Guest:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._vmrun = self._vmrun or find_vmrun(self._given_vmrun)
        self._own(vm)

        def work(attempt: Attempt) -> str:
            machine = Vmrun(self._vmrun, attempt)
            if vm in machine.running():
                _try(lambda: machine.run("unpause", str(vm)))  # left paused, perhaps by a killed env-server
            provider = upstream.vmware(attempt, self._vmrun)
            provider.revert_to_snapshot(str(vm), self._snapshot)
            provider.start_emulator(str(vm), headless=not self._gui, os_type="Ubuntu")
            return str(provider.get_ip_address(str(vm)))

        ip = _address(await self._attempt(vm, work, self._boot_s, is_booting), vm)
        rest = Rest(lambda: self._vm(vm, "pause"), lambda: self._vm(vm, "unpause"), self._pause_after_s)
        server, chromium, vnc, vlc = (f"{ip}:{port}" for port in upstream.GUEST_PORTS)
        running = await reached(
            f"vmware-{vm.stem}-{hashlib.sha256(str(vm).encode()).hexdigest()[:6]}",
            Addresses(server=server, chromium=chromium, vnc=vnc, vlc=vlc),
            rest,
            self._screen,
            timeout_s=max(self._boot_s - (loop.time() - begun), 1.0),
            fix=_NO_SERVER,
            alive=lambda: self._check_running(vm),
        )
        self._leased[running.guest.id] = vm, running
        return running.guest

    async def _check_snapshot(self, vm: Path) -> None:
        names = await self._attempt(vm, lambda attempt: Vmrun(self._vmrun, attempt).snapshots(vm), _COMMAND_S)
        if self._snapshot not in names:
            there = f"it has {', '.join(names)}" if names else "it has none"
            raise ProviderError(
                f"{vm} has no snapshot {self._snapshot!r} ({there}); fix: --provider-option snapshot=NAME, or take it: "
                f"vmrun {' '.join(upstream.vmrun_product())} snapshot {vm} {self._snapshot}"
            )

    async def _check_running(self, vm: Path) -> None:
        running = await self._attempt(vm, lambda attempt: Vmrun(self._vmrun, attempt).running(), _COMMAND_S)
        if vm not in running:
            raise ProviderError(
                f"{vm.name} has powered off by itself; fix: look at {vm.parent / 'vmware.log'}"
            )

    async def _power_off(self, vm: Path) -> None:
        """Never raises: there may be nothing to power off."""

        def work(attempt: Attempt) -> None:
            machine = Vmrun(self._vmrun, attempt)
            if vm in machine.running():
                _try(lambda: machine.run("unpause", str(vm)))
                # Not OSWorld's soft stop: that asks the guest's tools, which may hang, for a state that nobody wants.
                machine.run("stop", str(vm), "hard")

        try:
            await self._attempt(vm, work, _STOP_S)
        except ProviderError as error:
            log.warning("a machine could not be powered off: %s", error)

    async def _vm(self, vm: Path, command: str) -> None:
        await self._attempt(vm, lambda attempt: Vmrun(self._vmrun, attempt).run(command, str(vm)), _COMMAND_S)

    async def _attempt(
        self,
        vm: Path,
        work: Callable[[Attempt], T],
        timeout_s: float,
        transient: Callable[[str], bool] = lambda said: False,
    ) -> T:
        try:
            return await bounded(work, Attempt(timeout_s, transient))
        except ProviderError as error:
            raise explained(error, vm, self._snapshot) from error

    def _own(self, vm: Path) -> None:
        """Lock the machine for this process. Raises ProviderError when another env-server has it."""
        if vm in self._locks:
            return
        lock = FileLock(vm.with_name(f"{vm.name}.arpo-lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ProviderError(
                f"another env-server on this host uses {vm}; fix: stop it, or another vm_path"
            ) from error
        except OSError as error:
            raise ProviderError(
                f"{vm} cannot be locked: {error.strerror}; fix: let this user write to {vm.parent}, as VMware must"
            ) from error
        self._locks[vm] = lock

    def _running(self, guest: Guest) -> Running:
        if guest.id not in self._leased:
            raise ProviderError(f"there is no guest {guest.id}")
        return self._leased[guest.id][1]


def _try(command: Callable[[], object]) -> None:
    """A command that may be refused: the machine may not be in the state that it changes."""
    try:
        command()
    except CommandFailed as error:
        log.debug("%s", error)


def _address(said: str, vm: Path) -> str:
    """The address in `vmrun`'s answer, as URLs want it."""
    try:
        address = ipaddress.ip_address(said.splitlines()[-1].strip() if said else "")
    except ValueError:
        raise ProviderError(
            f"{vm.name}: vmrun gave {said!r} for its IP address; fix: give the machine a NAT or bridged adapter"
        ) from None
    return f"[{address}]" if address.version == 6 else str(address)
