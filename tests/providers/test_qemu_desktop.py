"""Desktops of the qemu provider for real: QEMU (emulation: no KVM is needed) and a Linux guest with OSWorld's routes.

The first test makes the guest's disk unless it is in .cache/tests: 80 s of CPU. Each of the two boots once: 20 s of CPU.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import qemu_guest
from PIL import Image
from server_process import ServerProcess, descendants, kill, server_process, wait_gone

from arpo.client import EnvClient
from arpo.guest_client import GuestError, Settle
from arpo.protocol.actions import Click, Finished, Type
from arpo.providers.base import Guest, Provider
from arpo.providers.registry import make_provider

WIDTH, HEIGHT = qemu_guest.SCREEN
QUICK = Settle(quiet_s=0.1, ceiling_s=2.0)
START_S = 200.0
MACHINE = {"accel": "tcg", "memory": "384M", "cpus": 1}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def image() -> Path:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 not installed (see scripts/apt-packages-qemu.txt)")
    try:
        return qemu_guest.guest()
    except qemu_guest.NoGuest as error:
        pytest.skip(f"there is no guest for QEMU, and none can be made: {error}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where machines have their files."""
    path = tmp_path / "machines"
    path.mkdir()
    yield path
    left = {pid for pid in descendants(os.getpid()) if "qemu" in command_of(pid)}
    for pid in left:
        kill(pid)
    assert left == set()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def machines(pid: int) -> set[int]:
    return {child for child in descendants(pid) if "qemu-system" in command_of(child)}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def listening(pid: int) -> set[str]:
    """Addresses that a process takes TCP connections at, as in /proc/net/tcp."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = str(fd.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    return {row[1].partition(":")[0] for row in rows[1:] if row[3] == "0A" and row[9] in inodes}


# --- the provider ----------------------------------------------------------------------------------------------------


def test_desktops_go_on_from_one_boot_clean_apart_and_with_the_right_time(image, folder) -> None:
    async def story() -> None:
        provider = make_provider(
            "qemu", screen=qemu_guest.SCREEN, desktops=2, start_timeout_s=START_S,
            image=str(image), folder=str(folder), **MACHINE,
        )  # fmt: skip
        await provider.preflight()
        try:
            await use(provider, *await asyncio.gather(provider.start(), provider.start()))
            assert size_of(folder) == 0, "the files of machines have no names"
        finally:
            await provider.close()
        assert machines(os.getpid()) == set()
        assert list(folder.iterdir()) == []

    before = image.read_bytes()
    asyncio.run(story())
    assert image.read_bytes() == before


async def shell(guest: Guest, line: str) -> str:
    result = await guest.client.execute(line, shell=True)
    assert result.returncode == 0, result
    return result.output


async def off_s(guest: Guest) -> float:
    """How far the guest's clock is from this host's, its answer's way left out."""
    asked = time.time()
    says = float(await shell(guest, "date +%s.%N"))
    return max(asked - says, says - time.time(), 0.0)


async def use(provider: Provider, one: Guest, two: Guest) -> None:
    # one boot, two machines
    boot = "cat /proc/sys/kernel/random/boot_id"
    booted = await shell(one, boot)
    assert await shell(two, boot) == booted
    pids = machines(os.getpid())
    assert len(pids) == 2
    for pid in pids:
        assert listening(pid) == {"0100007F"}, "127.0.0.1 alone"

    # what is done to one is not seen by the other, and is gone after a reset: disk and memory
    clean = await shell(two, "ls -R /dev/shm /home/user")
    await one.client.act([Click(x=5, y=5), Type(text="dirt")], QUICK)
    await shell(one, "echo dirt | tee /dev/shm/dirt >/opt/dirt; sync; date -s 2001-01-01")
    assert "typed.txt" in await shell(one, "ls /home/user")
    assert await shell(two, "ls -R /dev/shm /home/user") == clean
    fresh = await provider.reset(one)
    with pytest.raises(GuestError):
        await one.client.screenshot()
    assert await shell(fresh, "ls -R /dev/shm /home/user") == clean
    assert "dirt" not in await shell(fresh, "ls /opt")
    assert await shell(fresh, boot) == booted
    assert await off_s(fresh) < 3

    # a pause is not a hole in time
    await provider.pause(fresh)
    await asyncio.sleep(4)
    await provider.resume(fresh)
    assert await off_s(fresh) < 3

    # guests reach neither this host nor each other
    exposed = await provider.expose(two)
    host, _, port = str(exposed.addresses.server).partition(":")
    assert host == "127.0.0.1"
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    call = f"import socket; socket.create_connection(('10.0.2.2', {port}), 3)"
    assert (await fresh.client.execute(["python3", "-c", call])).returncode != 0

    # a machine that dies is replaced
    await provider.stop(two)
    (pid,) = machines(os.getpid())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(GuestError):
        await fresh.client.screenshot()
    again = await provider.reset(fresh)
    assert await shell(again, boot) == booted
    starting = asyncio.create_task(provider.start())
    await asyncio.sleep(0.3)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert len(machines(os.getpid())) == 1, "a start that is cancelled leaves none"
    await provider.stop(again)
    await provider.stop(again)


# --- through the command line and HTTP -------------------------------------------------------------------------------


def task(command: str, expected: str, *setup: str) -> dict[str, object]:
    return {
        "id": "qemu",
        "instruction": "Type the greeting.",
        "config": [{"type": "execute", "parameters": {"command": line, "shell": True}} for line in setup],
        "evaluator": {
            "func": "exact_match",
            "result": {"type": "vm_command_line", "command": command, "shell": True},
            "expected": {"type": "rule", "rules": {"expected": expected}},
        },
    }


LEFT = "ls /dev/shm; cat /home/user/typed.txt"
CLEAN = task(f"{LEFT} 2>/dev/null; echo end", "end\n")


def picture(screenshot: bytes) -> Image.Image:
    with Image.open(io.BytesIO(screenshot)) as image:
        return image.convert("RGB")


def test_sessions_over_http_are_apart_and_clean_and_sigkill_leaves_nothing(image, folder, tmp_path) -> None:
    options = {"image": image, "folder": folder, **MACHINE}
    extra = [word for name, value in options.items() for word in ("--provider-option", f"{name}={value}")]
    with server_process(
        tmp_path, "--capacity", "2", "--screen", f"{WIDTH}x{HEIGHT}", "--start-timeout-s", str(START_S), *extra,
        provider="qemu",
    ) as server:  # fmt: skip
        asyncio.run(sessions(server))
        pids = machines(server.pid)
        assert len(pids) == 2
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        assert wait_gone(pids) == set()
        assert size_of(folder) == 0
        assert "Traceback" not in server.log


async def sessions(server: ServerProcess) -> None:
    async with EnvClient(server.url, server.token) as client:
        await client.wait_ready(START_S)
        dirty = task(LEFT, "mark\nhello\n", "echo dirt >/dev/shm/mark")
        one, two = await asyncio.gather(client.open_session(dirty), client.open_session(CLEAN))
        first = picture(one.observation.screenshot.data)
        assert first.size == (WIDTH, HEIGHT)
        reply, other = await asyncio.gather(
            one.step([Click(x=9, y=9), Type(text="hello\n"), Finished()]),
            two.step([Click(x=9, y=9), Finished()]),
        )
        seen = picture(reply.observation.screenshot.data)
        assert len(seen.getcolors(1 << 16) or ()) > 1, "what was typed is to be seen"
        assert picture(other.observation.screenshot.data).tobytes() == first.tobytes() != seen.tobytes()
        assert await asyncio.gather(one.evaluate(), two.evaluate()) == [1.0, 1.0]
        await asyncio.gather(one.close(), two.close())

        # both places are used again: none is dirty
        again = await asyncio.gather(client.open_session(CLEAN), client.open_session(CLEAN))
        for session in again:
            assert picture(session.observation.screenshot.data).tobytes() == first.tobytes()
            await session.step([Finished()])
            assert await session.evaluate() == 1.0
            await session.close()
        await client.wait_ready(START_S)
