"""Notices the end of the process that started this one, SIGKILL included."""

from __future__ import annotations

import asyncio
import os
import sys

POLL_S = 0.5


async def parent_gone(parent: int) -> None:
    """Return once the parent process is gone.

    parent: its process id, as it names itself: `os.getppid()` is another's once it is gone.
    Not `PR_SET_PDEATHSIG`: that fires when the *thread* that started this process ends, and a trainer may
    start its env-server from a thread that does not last.
    """
    if sys.platform == "win32":
        await _gone_on_windows(parent)
        return
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(parent)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):
            pass  # no pidfd in this kernel, sandbox or Python: poll
        else:
            try:
                await _readable(descriptor)
            finally:
                os.close(descriptor)
            return
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing in this process can tell
        await asyncio.sleep(POLL_S)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)


async def _gone_on_windows(parent: int) -> None:
    """Windows never gives a process another parent, so `os.getppid()` cannot tell: a handle on the parent does."""
    import ctypes
    from ctypes import wintypes

    synchronize, still_runs = 0x00100000, 0x102
    kernel32 = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 - it is only there on Windows
    kernel32.OpenProcess.restype = wintypes.HANDLE
    kernel32.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    kernel32.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
    kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)
    handle = kernel32.OpenProcess(synchronize, False, parent)
    if not handle:
        return
    try:
        while kernel32.WaitForSingleObject(handle, 0) == still_runs:  # noqa: ASYNC110 - a handle, not a coroutine's
            await asyncio.sleep(POLL_S)
    finally:
        kernel32.CloseHandle(handle)
