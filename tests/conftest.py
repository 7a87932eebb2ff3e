"""Shared by all tests: real programs as subprocesses, and skips that name what is missing."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):  # the environment of the vllm engine's tests has none
    from hypothesis import settings

    # machines are shared: how long an example takes says nothing
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

gc.disable()  # until all tests are collected: their modules import torch, ray and more, and stay

ROOT = Path(__file__).parent.parent
WHOLE_RUNS = ("e2e", "engines", "launch", "images", "tunnel", "telemetry", "chart", "benchmarks")
"""Folders of tests that take seconds to minutes each."""
XVFB_PROGRAMS = ("Xvfb", "openbox", "dbus-daemon", "gio", "bwrap", "soffice", "xterm", "mousepad")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Run in several processes, the tests of a file stay together, and all files with real desktops do: their tests look
    for what desktops leave behind on the whole machine.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = (
        False  # else files with few tests would be last, and those have the long ones
    )

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "desktops" if _has_desktops(ROOT / file) else file

    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """What the imports have made is never garbage: no collection during the tests looks through it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real desktops, of whole runs and other slow ones come first, so that no process has one alone to do at the
    end.

    Tests of real desktops are skipped, with the reason, where the programs are not installed.
    """
    items.sort(key=lambda item: _order(item.path))
    missing = [program for program in XVFB_PROGRAMS if shutil.which(program) is None]
    if missing:
        reason = f"real desktops cannot run here: {', '.join(missing)} not installed (see scripts/apt-packages.txt)"
        for item in items:
            if item.get_closest_marker("xvfb"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _order(file: Path) -> int:
    if _has_desktops(file):
        return 0
    return 1 if file.parent.name in WHOLE_RUNS or _marks(file, "slow") else 2


def _has_desktops(file: Path) -> bool:
    return _marks(file, "xvfb")


@cache
def _marks(file: Path, mark: str) -> bool:
    return f"mark.{mark}" in file.read_text(encoding="utf-8")


@pytest.fixture
def arpo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the `arpo` command as a user would; returns the finished process."""

    def run(*arguments: str, timeout_s: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "arpo.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run
