"""QEMU's command line. Nothing is started here.

Files are given as descriptors of the env-server, which QEMU opens through /proc/self/fd: they have no names, so that
nothing is left of them when both processes are gone, however they went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROGRAM = "qemu-system-x86_64"

GUEST_PORTS = (5000, 9222, 8080)
"""Inside the guest: OSWorld's server, Chromium's DevTools, VLC."""

Accelerator = Literal["kvm", "tcg"]
Network = Literal["none", "user"]


@dataclass(frozen=True)
class Hardware:
    """A virtual machine, the same for all desktops: a state that was saved only fits the machine that it came from.

    memory_mib: its memory. firmware: for `-bios`, e.g. OVMF; None: SeaBIOS. arguments: further ones, as they are.
    """

    memory_mib: int
    cpus: int
    accelerator: Accelerator
    screen: tuple[int, int]
    network: Network
    firmware: Path | None = None
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Files:
    """Descriptors of a machine's files: its disk and its memory."""

    disk: int
    memory: int


def golden(hardware: Hardware, files: Files, monitor: int) -> list[str]:
    """The machine that boots once and whose state is saved: it writes to its files."""
    return _command(hardware, files, monitor, shared=True)


def desktop(hardware: Hardware, files: Files, monitor: int) -> list[str]:
    """A machine that waits for a saved state. What it writes to disk goes to a nameless file of its own in TMPDIR, what
    it writes to memory into pages of its own; the files themselves stay as they are.
    """
    return [*_command(hardware, files, monitor, shared=False), "-incoming", "defer"]


def _command(hardware: Hardware, files: Files, monitor: int, *, shared: bool) -> list[str]:
    kvm = hardware.accelerator == "kvm"
    width, height = hardware.screen
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in GUEST_PORTS)
    return [
        # the kernel ends QEMU with the env-server, also after SIGKILL
        "setpriv", "--pdeathsig", "KILL", "--", PROGRAM,
        "-no-user-config", "-nodefaults", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", f"q35,accel={hardware.accelerator},memory-backend=ram",
        "-cpu", "host" if kvm else "max",
        "-smp", str(hardware.cpus),
        "-m", f"{hardware.memory_mib}M",
        "-object", f"memory-backend-file,id=ram,size={hardware.memory_mib}M,mem-path=/proc/self/fd/{files.memory},"
        f"share={'on' if shared else 'off'}",
        # Drivers for these are in every Linux distribution's kernel; OSWorld's container has the same kinds.
        "-drive", f"if=none,id=disk,file=/proc/self/fd/{files.disk},format=qcow2,cache=unsafe,discard=unmap,"
        f"snapshot={'off' if shared else 'on'}",
        "-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,bus=scsi.0,drive=disk,bootindex=0",
        "-device", f"virtio-vga,xres={width},yres={height}",
        "-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci",
        "-netdev", f"user,id=net,ipv6=off,restrict={'on' if hardware.network == 'none' else 'off'}{forwards}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        # Desktops of one state would draw the same random numbers: the new id tells a kernel that has the driver.
        "-device", "vmgenid,guid=auto", "-device", "virtio-rng-pci",
        "-rtc", "base=utc,clock=host",
        "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        *(("-bios", str(hardware.firmware)) if hardware.firmware else ()),
        *hardware.arguments,
    ]  # fmt: skip


def kvm_trial() -> list[str]:
    """Arguments of a machine that shows whether KVM works, and reads commands for its monitor."""
    return [
        "-no-user-config", "-nodefaults", "-display", "none", "-monitor", "stdio", "-S",
        "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "64M",
    ]  # fmt: skip


def host_ports(said: str) -> dict[int, int]:
    """Port in the guest → port of 127.0.0.1, from what QEMU's `info usernet` says."""
    ports = {}
    for line in said.splitlines():
        words = line.split()
        if words and words[0] == "TCP[HOST_FORWARD]":
            ports[int(words[5])] = int(words[3])
    return ports
