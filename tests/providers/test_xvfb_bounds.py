"""Real desktops whose commands print, and whose files hold, far more than anybody reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest

from arpo.guest_client import GuestError, GuestFileMissing

pytestmark = pytest.mark.xvfb

FLOOD = ["sh", "-c", "yes | head -c 400000000"]
NOT_BLOCKED_S = 2.0
"""Far more than a crowded machine keeps one coroutine waiting."""


async def longest_wait(call: Awaitable[object]) -> float:
    """Seconds that the event loop kept everybody else waiting while the call went on and failed."""
    waits = [0.0]

    async def beat() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            waits.append(time.monotonic() - before)

    beating = asyncio.create_task(beat())
    try:
        await call
    finally:
        beating.cancel()
    return max(waits)


def failing(call: Awaitable[object], reason: str) -> Awaitable[float]:
    async def story() -> None:
        with pytest.raises(GuestError, match=reason):
            await call

    return longest_wait(story())


def test_a_command_that_floods_is_ended_and_nobody_waits_for_it(desk) -> None:
    wait_s = desk.run(failing(desk.client.execute(FLOOD), "printed more than 4 MiB"))
    assert wait_s < NOT_BLOCKED_S
    assert desk.run(desk.client.execute(["pgrep", "-x", "yes"])).returncode == 1


@pytest.mark.parametrize("stream", ["1", "2"])
def test_what_it_prints_counts_on_both_outputs(desk, stream) -> None:
    endless = desk.client.execute(f"yes >&{stream}", shell=True)
    desk.run(failing(endless, "printed more than 4 MiB"))


def test_an_output_that_fits_arrives_whole(desk) -> None:
    result = desk.run(desk.client.execute("head -c 4194304 /dev/zero | tr '\\0' x; exit 3", shell=True))
    assert (result.returncode, result.output, result.error) == (3, "x" * 2**22, "")
    result = desk.run(desk.client.execute("echo ü; printf '\\377' >&2", shell=True))
    assert (result.returncode, result.output, result.error) == (0, "ü\n", "\ufffd")


def test_a_command_that_neither_ends_nor_prints_ends_in_time(desk) -> None:
    for command in (["sleep", "60"], ["sh", "-c", "exec >&- 2>&-; sleep 60"]):
        with pytest.raises(GuestError, match="not finished within"):
            desk.run(desk.client.execute(command, timeout_s=0.5))
    assert desk.run(desk.client.execute(["pgrep", "-x", "sleep"])).returncode == 1


def test_a_file_that_is_too_large_is_an_error_and_nobody_waits_for_it(desk) -> None:
    desk.shell("truncate -s 400M large; truncate -s 64M fits")
    wait_s = desk.run(failing(desk.client.read_file("/home/user/large"), "larger than 64 MiB"))
    assert wait_s < NOT_BLOCKED_S
    assert len(desk.run(desk.client.read_file("/home/user/fits"))) == 64 << 20
    desk.shell("rm large fits")


@pytest.mark.parametrize("make", ["ln -s /dev/zero endless", "mkfifo endless"])
def test_what_would_never_end_is_no_file(desk, make) -> None:
    desk.shell(make)
    with pytest.raises(GuestFileMissing):
        desk.run(desk.client.read_file("/home/user/endless"))
    desk.shell("rm endless")


def test_a_large_upload_keeps_nobody_waiting(desk) -> None:
    content = bytes(100 << 20)
    wait_s = desk.run(longest_wait(desk.client.write_file("/tmp/upload", content)))
    assert wait_s < NOT_BLOCKED_S
    assert desk.shell("stat -c %s /tmp/upload").strip() == str(len(content))
    desk.shell("rm /tmp/upload")
