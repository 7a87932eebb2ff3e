"""Can this machine run QEMU desktops? Every missing thing is named together with its fix."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arpo.protocol.problems import ConfigError
from arpo.providers.base import ProviderError
from arpo.providers.qemu import command_line
from arpo.providers.qemu.command_line import PROGRAM, Accelerator

_log = logging.getLogger(__name__)

KVM = Path("/dev/kvm")
IMAGES = "https://huggingface.co/datasets/xlangai/ubuntu_osworld"

# program → Debian/Ubuntu package
_PROGRAMS = {PROGRAM: "qemu-system-x86", "qemu-img": "qemu-utils", "setpriv": "util-linux"}
_UNITS = {"M": 1, "G": 1024}
_LAYER_MIB = 1024  # what a desktop is given room to write, at least
_LEAST_MIB = 256
_TRIAL_S = 15.0


def check_programs() -> None:
    """Raise `ConfigError` naming missing programs and Python packages."""
    if sys.platform != "linux":
        raise ConfigError(
            f"qemu provider: it needs Linux, and this is {sys.platform}; fix: --provider vmware or docker"
        )
    missing = {program: package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise ConfigError(
            f"qemu provider: {', '.join(missing)} not found; fix: apt-get install {' '.join(missing.values())}"
        )


async def accelerator(wanted: Literal["auto", "kvm", "tcg"], arguments: Sequence[str]) -> Accelerator:
    """What runs the guests. Raises `ConfigError` when KVM is wanted and cannot be had; `auto` warns and emulates.

    arguments: what QEMU is given besides; they may be what makes KVM work on this machine.
    """
    if wanted == "tcg":
        return "tcg"
    why, fix = _no_device()
    if not why:
        why, fix = await _no_kvm(arguments)
    if not why:
        return "kvm"
    if wanted == "kvm":
        raise ConfigError(f"qemu provider: {why}; fix: {fix}, or --provider-option accel=tcg (slow)")
    _log.warning(
        "qemu provider: %s: guests are emulated, many times slower; fix: %s. accel=tcg says that it is meant",
        why,
        fix,
    )
    return "tcg"


def _no_device() -> tuple[str, str]:
    """Why there is no KVM device for us, and what to do about it; empty when there is one."""
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            f"there is no {KVM}",
            "load kvm_intel or kvm_amd, or give the container the device (Kubernetes: env.kvm)",
        )
    except PermissionError:
        return (
            f"this user may not open {KVM}",
            "add the user to the group kvm (Kubernetes: env.qemu.supplementalGroups)",
        )
    except OSError as error:
        return f"{KVM} cannot be opened ({error.strerror})", "look at dmesg for what KVM says"
    return "", ""


async def _no_kvm(arguments: Sequence[str]) -> tuple[str, str]:
    """The same for a machine that does nothing: some hosts have the device and yet no KVM that runs one."""
    command = [PROGRAM, *command_line.kvm_trial(), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TRIAL_S):
            _, said = await process.communicate(b"quit\n")
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return (
                "KVM does not work here: a machine did not start in time",
                "look at dmesg for what KVM says",
            )
        raise
    if process.returncode == 0:
        return "", ""
    words = said.decode("utf-8", "replace").strip().splitlines() or [f"status {process.returncode}"]
    return f"KVM does not work here: {' | '.join(words[-2:])}", "enable (nested) virtualization"


def megabytes(option: str, text: str) -> int:
    """`4G` or `512M` in MiB. Raises `ConfigError`."""
    number, unit = text[:-1], text[-1:].upper()
    if not number.isdecimal() or unit not in _UNITS or int(number) * _UNITS[unit] < _LEAST_MIB:
        raise ConfigError(f"qemu provider: {option}={text} is no size; fix: e.g. 4G or 4096M, at least 256M")
    return int(number) * _UNITS[unit]


def given_image(image: Path | None) -> Path:
    """The image, if there is one. Raises `ConfigError`."""
    if image is None or not image.is_file():
        given = f"{image} is no file" if image else "no image given"
        raise ConfigError(
            f"qemu provider: {given}; fix: --provider-option image=/path/to/Ubuntu.qcow2 (OSWorld's: unpack "
            f"Ubuntu.qcow2.zip of {IMAGES})"
        )
    return image


async def check_image(image: Path) -> None:
    """Raise `ConfigError` unless it is a sound qcow2 image."""
    code, said = await qemu_img("info", "--output=json", "-U", str(image))
    if code != 0:
        raise ConfigError(f"qemu provider: {said}; fix: let this user read the image, or unpack it again")
    kind = json.loads(said)["format"]
    if kind != "qcow2":
        raise ConfigError(
            f"qemu provider: {image} is a {kind} image, not qcow2; fix: unpack it, or qemu-img convert -O qcow2 {image} "
            f"{image.with_suffix('.qcow2')}"
        )
    code, said = await qemu_img("check", "-q", "-U", "-f", "qcow2", str(image))
    if code not in (0, 3):  # 3: sound, but clusters are lost to it
        raise ConfigError(f"qemu provider: {image} is damaged ({said}); fix: unpack it again")


def check_space(folder: Path, memory_mib: int, desktops: int) -> None:
    """Raise `ConfigError` unless the folder has room for the golden memory and what desktops write."""
    wanted = memory_mib + _LAYER_MIB * desktops
    free = shutil.disk_usage(folder).free >> 20
    if free < wanted:
        raise ConfigError(
            f"qemu provider: {folder} has {free} MiB free, and {wanted} are wanted ({memory_mib} for the guest's memory, "
            f"{_LAYER_MIB} for what each desktop writes); fix: free space, or --provider-option folder=/with/more/space"
        )


def check_still_space(folder: Path) -> None:
    """Raise `ProviderError` when a desktop more would have no room."""
    free = shutil.disk_usage(folder).free >> 20
    if free < _LAYER_MIB:
        raise ProviderError(
            f"{folder} has only {free} MiB left for what a desktop writes; fix: free space, or another "
            "--provider-option folder=…"
        )


async def qemu_img(*arguments: str) -> tuple[int, str]:
    """Its exit code, and what it said. It does not outlive the caller's patience."""
    process = await asyncio.create_subprocess_exec(
        "qemu-img", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, error = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode == 0:
        return 0, output.decode()
    said = (error or output).decode("utf-8", "replace").strip()
    return process.returncode or 0, "; ".join(said.splitlines())
