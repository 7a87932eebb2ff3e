"""What the learner's benchmarks share: a process of its own for a measurement, and the name of the machine."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessEnded(Exception):  # noqa: N818 - an event, which the caller judges
    """A process ended without a result. killed: by SIGKILL, as the kernel does when memory is short."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the measuring process ended with exit code {exit_code}; its error is above")
        self.killed = exit_code == -signal.SIGKILL


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, computed in a process that ends with it, memory and all.

    Forked, which saves the imports: call it before torch has computed anything or looked for a GPU. Raises
    ProcessEnded when there is no result.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessEnded(process.exitcode) from None
    process.join()
    return result


def cpu_name() -> str:
    """Model and number of CPUs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
    return f"{name}, {os.cpu_count()} CPUs"


def positive(text: str) -> int:
    """For argparse: a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
