"""What the learner's benchmarks share: a process of its own for a measurement, and the name of the machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, computed in a process that ends with it, memory and all.

    Forked, which saves the imports: call it before torch has computed anything or looked for a GPU. Raises what the
    function raises, and BrokenProcessPool when the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
        return process.submit(function, *arguments).result()


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
