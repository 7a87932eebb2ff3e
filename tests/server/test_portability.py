"""The env-server on macOS and Windows: it imports and serves without what only Linux or Unix has.

These tests take the modules and calls away; nobody has run it on those systems yet.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import arguments, wait_for_file

from arpo.client import EnvClient
from arpo.protocol.actions import Click, Fail
from arpo.protocol.tokens import parse_tokens
from arpo.providers import registry
from arpo.server import parent

OTHER_SYSTEM = Path(__file__).with_name("other_system.py")
ROOT = Path(__file__).parent.parent.parent
SYSTEMS = ("darwin", "win32")
IMPORTS = (
    "arpo.server.cli",
    "arpo.client",
    "arpo.cli",
    "arpo.providers.registry",
    "arpo.providers.simulated.provider",
    "arpo.providers.osworld.vmware",
    "arpo.providers.osworld.docker",
    "arpo.guest_client.osworld",
)
TASK = {"id": "t", "instruction": "it cannot be done", "evaluator": {"func": "infeasible"}}
METRIC_TASK = {
    "id": "m",
    "instruction": "nothing to do",
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": ["echo", "hi"]},
        "expected": {"type": "rule", "rules": {"expected": "hi\n"}},
    },
}
"""Its metric runs in the evaluator process, which runs as what this machine is."""


def on(system: str, *arguments: str) -> list[str]:
    return [sys.executable, str(OTHER_SYSTEM), system, *arguments]


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_mac_or_a_windows_machine_needs_imports_there(system: str) -> None:
    result = subprocess.run(
        on(system, "-", *IMPORTS), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_block_can_fail(system: str) -> None:
    result = subprocess.run(
        on(system, "-", "arpo.guest.screen"), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    assert "No module named" in result.stderr


@pytest.mark.parametrize(
    ("system", "number", "code"),
    [("darwin", signal.SIGTERM, 0), ("win32", signal.SIGTERM, 0), ("win32", signal.SIGINT, 130)],
)
def test_it_serves_a_session_and_stops_in_order(tmp_path, system: str, number: int, code: int) -> None:
    _, *options = arguments(tmp_path)[2:]
    with (tmp_path / "log").open("wb") as log:
        # A temporary folder of its own: without fcntl it locks nothing, and others would tidy its files away.
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            on(system, "arpo.server.cli", *options), stdout=log, stderr=log, env=environment
        )
    try:
        url = wait_for_file(tmp_path / "url", process)
        token = parse_tokens((tmp_path / "token").read_text())[0].secret

        async def story() -> float:
            async with EnvClient(url, token) as client:
                await client.wait_ready(30)
                async with await client.open_session(TASK) as session:
                    await session.step([Click(x=5, y=5), Fail()])
                    assert await session.evaluate() == 1.0
                async with await client.open_session(METRIC_TASK) as session:
                    return await session.evaluate()

        assert asyncio.run(story()) == 1.0
        process.send_signal(number)
        assert process.wait(30) == code
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text(), (tmp_path / "log").read_text()


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_starts_with_vmware_there_and_says_what_it_needs(tmp_path, system: str) -> None:
    options = arguments(tmp_path)[5:]  # no --provider
    result = subprocess.run(
        on(system, "arpo.server.cli", *options), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "vmware provider: no machine given; fix: --provider-option vm_path=" in result.stderr


@pytest.mark.parametrize("system", SYSTEMS)
def test_xvfb_is_refused_there_with_the_fix(tmp_path, system: str) -> None:
    options = arguments(tmp_path, provider="xvfb")[3:]
    result = subprocess.run(
        on(system, "arpo.server.cli", *options), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2, result.stderr
    assert f"needs Linux, and this is {system}; fix: --provider vmware" in result.stderr


def test_the_default_provider_is_the_systems(monkeypatch) -> None:
    for system, name, screen in (
        ("linux", "xvfb", (1280, 720)), ("darwin", "vmware", (1920, 1080)), ("win32", "vmware", (1920, 1080)),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "platform", system)
        assert registry.default_provider() == name
        assert registry.default_screen(name) == screen


class Kernel32:
    """Stands for Windows' kernel32: the process runs for a few looks."""

    def __init__(self, looks: int | None) -> None:
        self.looks = looks
        self.closed: list[int] = []

        def open_process(access: int, inherit: bool, pid: int) -> int | None:
            assert (access, inherit, pid) == (0x00100000, False, 42)
            return None if self.looks is None else 7

        def wait(handle: int, milliseconds: int) -> int:
            assert (handle, milliseconds, self.closed) == (7, 0, [])
            assert self.looks is not None
            self.looks -= 1
            return 0x102 if self.looks >= 0 else 0

        self.OpenProcess, self.WaitForSingleObject = open_process, wait
        self.CloseHandle = lambda handle: self.closed.append(handle)


@pytest.mark.parametrize(("looks", "closed"), [(2, [7]), (None, [])])
def test_on_windows_the_end_of_the_parent_is_noticed_by_a_handle(monkeypatch, looks, closed) -> None:
    kernel32 = Kernel32(looks)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: {"kernel32": kernel32}[name], raising=False)
    monkeypatch.setattr(parent, "POLL_S", 0.01)
    monkeypatch.setattr(sys, "platform", "win32")
    asyncio.run(parent._gone_on_windows(42))
    assert kernel32.closed == closed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installing_the_env_server_pulls_no_torch_and_no_ray() -> None:
    """pip's own resolution, nothing installed."""
    index = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", os.devnull, "filelock"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "No matching distribution" in index.stderr:
        pytest.skip(f"no package index can be reached: {index.stderr.strip().splitlines()[-1]}")
    # one resolution for both extras: pip takes most of a minute for it, and all that either needs is in it
    names = resolved(".[env-server,docker]")
    assert {"arpo", "httpx", "fastapi", "docker"} <= names, names
    heavy = {
        name
        for name in names
        if name.startswith(("torch", "ray", "nvidia", "transformers", "vllm", "triton"))
    }
    assert not heavy, heavy


def resolved(requirement: str) -> set[str]:
    """The packages that pip would install in an empty environment."""
    result = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
            "--report", "-", requirement,
        ],
        capture_output=True, text=True, timeout=500, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {item["metadata"]["name"].lower() for item in json.loads(result.stdout)["install"]}
