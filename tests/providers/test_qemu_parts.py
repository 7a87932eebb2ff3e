"""The parts of the qemu provider that need no guest: its command line, what it refuses, and what QEMU's errors become."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from provider_errors import refusal, start_error
from server_process import arguments

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Provider
from arpo.providers.qemu import command_line, preflight
from arpo.providers.qemu.command_line import Files, Hardware
from arpo.providers.registry import default_screen, make_provider

HARDWARE = Hardware(
    memory_mib=4096, cpus=4, accelerator="kvm", screen=(1920, 1080), network="none", arguments=("-k", "de")
)
INSTALLED = shutil.which("qemu-img") and shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(
    not INSTALLED, reason="qemu-system-x86 and qemu-utils not installed (see scripts/apt-packages-qemu.txt)"
)


def provider_of(image: Path | None = None, **options: object) -> Provider:
    given = {"image": str(image)} if image else {}
    return make_provider("qemu", screen=(640, 480), **given, **{"accel": "tcg", "memory": "256M", **options})


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """A sound image with nothing on it that boots."""
    path = tmp_path / "blank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"], check=True)
    return path


# --- the command line ------------------------------------------------------------------------------------------------


def option(command: list[str], name: str) -> list[str]:
    return [command[n + 1] for n, word in enumerate(command) if word == name]


def test_only_the_golden_machine_writes_to_the_files() -> None:
    golden = command_line.golden(HARDWARE, Files(7, 8), 9)
    desktop = command_line.desktop(HARDWARE, Files(7, 8), 9)
    assert (
        "file=/proc/self/fd/7,format=qcow2,cache=unsafe,discard=unmap,snapshot=off"
        in option(golden, "-drive")[0]
    )
    assert option(desktop, "-drive")[0].endswith("snapshot=on")
    assert option(golden, "-object")[0].endswith("mem-path=/proc/self/fd/8,share=on")
    assert option(desktop, "-object")[0].endswith("share=off")
    different = {*zip(golden, desktop, strict=False)}
    assert sum(one != other for one, other in different) == 2, (
        "a saved state only fits the machine it came from"
    )
    assert desktop[len(golden) :] == ["-incoming", "defer"]


def test_a_guest_is_reached_from_loopback_only_and_reaches_nothing_unless_it_is_allowed_to() -> None:
    (net,) = option(command_line.golden(HARDWARE, Files(7, 8), 9), "-netdev")
    forwards = [part for part in net.split(",") if part.startswith("hostfwd=")]
    assert forwards == [f"hostfwd=tcp:127.0.0.1:0-:{port}" for port in (5000, 9222, 8080)]
    assert "restrict=on" in net
    open_net = Hardware(4096, 4, "tcg", (1920, 1080), "user")
    assert "restrict=off" in option(command_line.golden(open_net, Files(7, 8), 9), "-netdev")[0]


def test_the_machine_is_as_described() -> None:
    command = command_line.golden(HARDWARE, Files(7, 8), 9)
    assert command[:5] == ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64"]
    assert option(command, "-machine") == ["q35,accel=kvm,memory-backend=ram"]
    assert (option(command, "-cpu"), option(command, "-smp"), option(command, "-m")) == (
        ["host"],
        ["4"],
        ["4096M"],
    )
    assert "virtio-vga,xres=1920,yres=1080" in option(command, "-device")
    assert command[-2:] == ["-k", "de"]
    assert "-bios" not in command
    uefi = Hardware(512, 1, "tcg", (800, 600), "none", firmware=Path("/ovmf.fd"))
    assert option(command_line.desktop(uefi, Files(7, 8), 9), "-bios") == ["/ovmf.fd"]
    assert option(command_line.desktop(uefi, Files(7, 8), 9), "-cpu") == ["max"]


def test_host_ports_are_read_from_what_qemu_says() -> None:
    said = (
        "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[HOST_FORWARD]  14       127.0.0.1 40425       10.0.2.15  8080     0     0\r\n"
        "  TCP[ESTABLISHED]   20       127.0.0.1 33077       10.0.2.15  5000     0     0\r\n"
        "  TCP[HOST_FORWARD]  12       127.0.0.1 33077       10.0.2.15  5000     0     0\r\n"
    )
    assert command_line.host_ports(said) == {8080: 40425, 5000: 33077}


def test_the_screen_is_osworlds_unless_told() -> None:
    assert default_screen("qemu") == (1920, 1080)


# --- refusals --------------------------------------------------------------------------------------------------------


@needs_qemu
def test_an_image_that_cannot_be_used_is_refused_with_the_fix(blank, tmp_path) -> None:
    assert "no image given; fix: --provider-option image=" in refusal(provider_of())
    assert "none.qcow2 is no file; fix: " in refusal(provider_of(tmp_path / "none.qcow2"))
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(1 << 20))
    assert "is a raw image, not qcow2; fix: unpack it, or qemu-img convert" in refusal(provider_of(raw))
    damaged = bytearray(blank.read_bytes())
    damaged[0x10000:0x10008] = b"\xff" * 8  # the table of reference counts
    blank.write_bytes(damaged)
    assert "is damaged (" in refusal(provider_of(blank))
    assert "fix: unpack it again" in refusal(provider_of(blank))


@needs_qemu
def test_what_this_machine_lacks_is_named_with_the_fix(blank, tmp_path, monkeypatch) -> None:
    said = refusal(provider_of(blank, memory="99999G"))
    assert "are wanted (102398976 for the guest's memory" in said
    assert "fix: free space, or --provider-option folder=" in said
    assert "folder=/no/such is no folder; fix: make it" in refusal(provider_of(blank, folder="/no/such"))
    assert "fix: apt-get install ovmf" in refusal(provider_of(blank, firmware="/no/ovmf.fd"))
    for memory in ("4", "much", "12M", "4T"):
        with pytest.raises(ConfigError, match=r"memory=.* is no size; fix: e\.g\. 4G"):
            provider_of(blank, memory=memory)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = refusal(provider_of(blank))
    assert "qemu-system-x86_64, qemu-img, setpriv not found" in missing
    assert "fix: apt-get install qemu-system-x86 qemu-utils util-linux" in missing
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux, and this is darwin; fix: --provider vmware" in refusal(provider_of(blank))


@needs_qemu
def test_without_kvm_auto_warns_and_emulates_and_kvm_is_refused(blank, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(preflight, "KVM", tmp_path / "kvm")
    said = refusal(provider_of(blank, accel="kvm"))
    assert f"there is no {tmp_path / 'kvm'}; fix: load kvm_intel or kvm_amd" in said
    assert said.endswith("or --provider-option accel=tcg (slow)")
    assert asyncio.run(preflight.accelerator("auto", ())) == "tcg"
    (warning,) = caplog.messages
    assert "guests are emulated" in warning
    assert "accel=tcg says that it is meant" in warning


@needs_qemu
def test_a_kvm_device_that_runs_no_machine_is_no_kvm(blank, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "KVM", Path("/dev/null"))
    said = refusal(provider_of(blank, accel="kvm", arguments=["-cpu", "abacus"]))
    assert "KVM does not work here: " in said
    assert "fix: enable (nested) virtualization" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to open a device")
def test_a_kvm_device_that_may_not_be_opened_names_the_group(tmp_path, monkeypatch) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o000)
    monkeypatch.setattr(preflight, "KVM", device)
    os.seteuid(65534)
    try:
        with pytest.raises(
            ConfigError, match=r"this user may not open .*kvm; fix: add the user to the group kvm"
        ):
            asyncio.run(preflight.accelerator("kvm", ()))
    finally:
        os.seteuid(0)


# --- starts that fail ------------------------------------------------------------------------------------------------


@needs_qemu
def test_qemu_that_does_not_start_is_quoted(blank) -> None:
    said = start_error(provider_of(blank, arguments=["-device", "nonsense"]))
    assert "QEMU did not start: " in said
    assert "'nonsense' is not a valid device model name" in said


@needs_qemu
def test_a_guest_that_never_answers_is_said_in_time_and_nothing_is_left(blank, tmp_path) -> None:
    said = start_error(provider_of(blank, start_timeout_s=3.0, folder=str(tmp_path)))
    assert "did not answer in 3 s" in said
    assert "fix: raise --start-timeout-s" in said
    assert [path.name for path in tmp_path.iterdir()] == ["blank.qcow2"]


@needs_qemu
def test_a_full_folder_is_said_before_a_machine_starts(blank, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "_LAYER_MIB", 1 << 40)
    said = start_error(provider_of(blank, folder=str(tmp_path)))
    assert "MiB left for what a desktop writes; fix: free space, or another --provider-option folder=" in said


@needs_qemu
def test_qemu_that_ends_while_its_guest_boots_is_not_waited_for(blank) -> None:
    ends = [
        "-no-reboot",
        "-boot",
        "reboot-timeout=100",
    ]  # nothing to boot: the firmware tries again, and that ends it
    said = start_error(provider_of(blank, start_timeout_s=60.0, arguments=ends))
    assert "QEMU has ended by itself" in said


@needs_qemu
def test_a_refusal_on_the_command_line_is_one_line_and_exit_code_2(tmp_path) -> None:
    command = arguments(tmp_path, "--provider-option", "image=/no/Ubuntu.qcow2", provider="qemu")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert "/no/Ubuntu.qcow2 is no file; fix: --provider-option image=" in line
