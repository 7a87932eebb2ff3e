"""Real desktops that break in the middle of an episode: a typed problem in time, and the next lease works."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from arpo.desktop.base import Desktop
from arpo.desktop.guest_desktop import DesktopTimeouts, GuestDesktop
from arpo.guest_client import GuestClient, GuestError
from arpo.protocol.actions import Press
from arpo.protocol.problems import Fault, ProblemCode, ProblemError
from arpo.providers.xvfb import XvfbProvider
from arpo.server.pool import DesktopPool, PoolLimits, Verdict, running_pool
from arpo.tasks.model import Task
from arpo.tasks.sets import load_suite
from arpo.tasks.validate import parse_task

pytestmark = pytest.mark.xvfb

TIMEOUTS = DesktopTimeouts(step_s=8.0, setup_s=30.0)
IN_TIME_S = 30.0
"""A step's limit, the question whether the guest still answers, and a crowded machine."""

FILL = "fallocate -l $(df --output=avail -B1 ~ | tail -1) ~/full"

SHEET = load_suite("local").task("calc-bold-header")


def task(*config: dict) -> Task:
    """A task that only sets up."""
    evaluator = {"func": "infeasible"}
    return parse_task(
        {"id": "t", "instruction": "Do.", "config": list(config), "evaluator": evaluator}, "task"
    )


BARE = task()


@asynccontextmanager
async def one_desktop() -> AsyncIterator[DesktopPool]:
    """A pool with one sandboxed desktop."""
    provider = XvfbProvider()

    async def start() -> Desktop:
        desktop = GuestDesktop(provider, timeouts=TIMEOUTS)
        await desktop.start()
        return desktop

    try:
        async with running_pool(start, 1, PoolLimits()) as pool:
            yield pool
    finally:
        await provider.close()


async def free(pool: DesktopPool) -> None:
    async with asyncio.timeout(60):
        while not pool.available():
            await asyncio.sleep(0.02)


def client_of(desktop: Desktop) -> GuestClient:
    assert isinstance(desktop, GuestDesktop)
    return desktop._running().client


def run_in(desktop: Desktop, command: str) -> Awaitable[object]:
    """A shell command in the guest, which may take its guest server down with it."""

    async def run() -> None:
        with contextlib.suppress(GuestError, TimeoutError):
            async with asyncio.timeout(2):
                await client_of(desktop).execute(command, shell=True)

    return run()


def after_a_fault(command: str, call: Callable[[Desktop], Awaitable[object]]) -> ProblemError:
    """The problem that `call` ends with after `command` ran in the guest; checks that the next lease works."""

    async def main() -> ProblemError:
        async with one_desktop() as pool:
            await free(pool)
            slot = pool.lease()
            broken = slot.desktop
            await broken.reset(BARE)
            pool.reset_worked(slot)
            await run_in(broken, command)
            begun = time.monotonic()
            with pytest.raises(ProblemError) as caught:
                await call(broken)
            assert time.monotonic() - begun < IN_TIME_S
            pool.give_back(slot, Verdict.LOST, caught.value.problem.detail)
            await free(pool)
            assert pool.lease() is slot
            assert slot.desktop is not broken
            assert (await slot.desktop.reset(BARE)).startswith(b"\x89PNG")
            assert await slot.desktop.execute([Press(key="a")])
            assert pool.out_of_service() == ""
            return caught.value

    return asyncio.run(main())


GONE = pytest.mark.parametrize(
    "command",
    ["pkill -9 Xvfb", "kill -STOP $PPID"],
    ids=["a killed X server", "a stopped guest server"],
)


@GONE
def test_a_guest_that_is_gone_is_a_lost_desktop(sandboxed: None, command: str) -> None:
    problem = after_a_fault(command, lambda desktop: desktop.execute([Press(key="a")]))
    assert (problem.code, problem.fault) == (ProblemCode.DESKTOP_LOST, Fault.ENVIRONMENT)


@GONE
def test_a_guest_that_is_gone_when_its_lease_ends_is_cleaned_like_any_other(
    sandboxed: None, command: str
) -> None:
    async def main() -> None:
        async with one_desktop() as pool:
            await free(pool)
            slot = pool.lease()
            await slot.desktop.reset(BARE)
            await run_in(slot.desktop, command)
            pool.give_back(slot, Verdict.USED)
            await free(pool)
            assert pool.view()[0].strikes == 0
            assert await pool.lease().desktop.reset(BARE)

    asyncio.run(main())


def test_a_killed_program_costs_the_agent_its_windows_and_the_next_episode_nothing(sandboxed: None) -> None:
    async def main() -> None:
        async with one_desktop() as pool:
            await free(pool)
            slot = pool.lease()
            first = await slot.desktop.reset(SHEET)
            assert await slot.desktop.execute([Press(key="a")]) != first
            await run_in(slot.desktop, "pkill -9 soffice; pkill -9 oosplash")
            bare = await slot.desktop.execute([Press(key="a")])
            assert await slot.desktop.evaluate() == 0.0
            pool.give_back(slot, Verdict.USED)
            await free(pool)
            again = await pool.lease().desktop.reset(SHEET)
            assert again == first  # no recovery dialog, no lock file
            assert again != bare

    asyncio.run(main())


def test_a_full_disk_is_a_failed_setup_and_ends_with_the_episode(sandboxed: None) -> None:
    fill = {"type": "execute", "parameters": {"command": FILL, "shell": True}}
    file = {"url": "data:text/plain;base64,aGVsbG8=", "path": "/home/user/a.txt"}
    download = {"type": "download", "parameters": {"files": [file]}}

    async def main() -> None:
        async with one_desktop() as pool:
            await free(pool)
            slot = pool.lease()
            with pytest.raises(ProblemError) as caught:
                await slot.desktop.reset(task(fill, download))
            assert caught.value.code is ProblemCode.SETUP_FAILED
            assert "setup step 2 (download)" in str(caught.value)
            assert "No space left on device" in str(caught.value)
            pool.give_back(slot, Verdict.USED)
            await free(pool)
            desktop = pool.lease().desktop
            await desktop.reset(task(download))
            # Filled by the agent: its own affair, the desktop goes on.
            await run_in(desktop, FILL)
            assert await desktop.execute([Press(key="a")])
            assert await desktop.evaluate() == 0.0
            pool.give_back(slot, Verdict.USED)
            await free(pool)
            await pool.lease().desktop.reset(task(download))

    asyncio.run(main())
