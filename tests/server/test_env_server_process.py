"""`arpo-env-server` as a process: how it starts, what it refuses, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from server_process import (
    COMMAND,
    alive,
    arguments,
    descendants,
    kill,
    server_process,
    wait_for_file,
    wait_gone,
)

from arpo.client import ClientTimeouts, EnvClient
from arpo.protocol.actions import Click, Fail
from arpo.protocol.problems import Fault, ProblemCode, ProblemError

TASK = {"id": "t", "instruction": "it cannot be done", "evaluator": {"func": "infeasible"}}


def refused(folder, *extra: str, **how) -> str:
    """The one line on stderr of a server that refused to start."""
    result = subprocess.run(
        arguments(folder, *extra, **how), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2, (result.returncode, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_it_makes_a_token_for_its_owner_says_where_and_never_what(tmp_path) -> None:
    with server_process(tmp_path, "--log-level", "debug", "--capacity", "2") as server:
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as http:
            capacity = http.get("/v1/capacity").json()
            assert (capacity["provider"], capacity["capacity"], capacity["screen"]) == (
                "simulated",
                2,
                [1280, 720],
            )
            assert http.get("/no/such").status_code == 404
        assert server.stop() == 0
        assert str(tmp_path / "token") in server.log
        assert "/no/such" in server.log
        assert server.token not in server.log


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_order_with_a_session_open(tmp_path, number: int, code: int) -> None:
    async def story(server) -> ProblemError:
        async with EnvClient(server.url, server.token) as client:
            await client.wait_ready(20)
            session = await client.open_session(TASK)
            ended = asyncio.create_task(asyncio.to_thread(server.stop, number))
            try:
                while True:
                    await session.step([Click(x=5, y=5)])
            except ProblemError as error:
                assert await ended == code
                return error

    with server_process(tmp_path) as server:
        error = asyncio.run(story(server))
        assert (error.code, error.fault) == (ProblemCode.BACKEND_LOST, Fault.ENVIRONMENT)
        assert not (tmp_path / "url").exists()
        assert server.log.splitlines()[-1] == "stopped"
        assert "Traceback" not in server.log


def test_a_killed_server_is_noticed_within_the_outage_time_and_its_successor_serves_the_same_client(
    tmp_path,
) -> None:
    async def story() -> None:
        with server_process(tmp_path) as first:
            port = urlsplit(first.url).port
            async with EnvClient(first.url, first.token, timeouts=ClientTimeouts(outage_s=1)) as client:
                await client.wait_ready(20)
                old = await client.open_session(TASK)
                await old.step([Click(x=5, y=5)])
                first.process.kill()
                first.process.wait()
                (tmp_path / "url").unlink()
                begun = time.monotonic()
                for call in (old.step([Click(x=6, y=6)]), client.open_session(TASK)):
                    with pytest.raises(ProblemError) as caught:
                        await call
                    assert (caught.value.code, caught.value.fault) == (
                        ProblemCode.BACKEND_LOST,
                        Fault.ENVIRONMENT,
                    )
                assert time.monotonic() - begun < 6
                with server_process(tmp_path, port=port) as second:
                    assert second.url == first.url
                    await client.wait_ready(20)
                    with pytest.raises(ProblemError, match="restarted") as caught:
                        await old.step([Click(x=6, y=6)])
                    assert caught.value.fault is Fault.ENVIRONMENT
                    async with await client.open_session(TASK) as session:
                        await session.step([Fail(reason="cannot be done")])
                        assert await session.evaluate() == 1.0
                    async with await client.open_session(TASK) as session:
                        assert await session.evaluate() == 0.0

    asyncio.run(story())


PARENT = """
import os, subprocess, sys, threading, time
command = [*sys.argv[1:], "--exit-with", str(os.getpid())]
threads = [threading.Thread(target=lambda: subprocess.Popen(command))]  # a thread that ends at once
threads[0].start(); threads[0].join()
time.sleep(600)
"""


def orphaned(folder, *extra: str, provider: str = "simulated", wait=lambda pid: None) -> tuple[int, set[int]]:
    """Start a server from a parent, kill the parent with SIGKILL; returns the server and what was below it."""
    command = arguments(folder, *extra, provider=provider)
    with (folder / "log").open("ab") as log:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, *command], stdout=log, stderr=log)
    try:
        wait_for_file(folder / "url", parent)
        (server,) = [pid for pid in descendants(parent.pid) if "arpo.server.cli" in cmdline(pid)]
        wait(server)
        below = descendants(server)
        assert alive(server), (folder / "log").read_text()
    finally:
        parent.kill()
        parent.wait()
    return server, below


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_it_ends_with_the_process_that_started_it_even_by_sigkill(tmp_path) -> None:
    server, _ = orphaned(tmp_path, wait=lambda pid: time.sleep(0.5))
    try:
        assert not wait_gone({server})
        assert (tmp_path / "log").read_text().splitlines()[-1] == "stopped"
    finally:
        kill(server)


@pytest.mark.xvfb
@pytest.mark.slow
def test_no_desktop_outlives_a_killed_trainer(tmp_path) -> None:
    def until_ready(pid: int) -> None:
        url = (tmp_path / "url").read_text().strip()
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/readyz").status_code != 200:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)

    server, below = orphaned(tmp_path, "--screen", "640x480", provider="xvfb", wait=until_ready)
    try:
        assert below, "no desktop was running"
        assert not wait_gone({server, *below}, timeout_s=30)
    finally:
        for pid in (server, *below):
            kill(pid)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--provider", "nonsense"], ["nonsense", "simulated", "xvfb"]),
        (["--screen", "huge"], ["--screen", "1280x720"]),
        (["--screen", "320x200"], ["640x480"]),
        (["--host", "no.such.host.invalid"], ["--host", "fix:"]),
        (["--url-file", "/proc/nowhere/url"], ["--url-file"]),
        (["--token-file", "/proc/nowhere/token"], ["--token-file"]),
    ],
)
def test_bad_input_is_one_line_with_the_fix_and_exit_code_2(tmp_path, extra, words) -> None:
    line = refused(tmp_path, "--log-level", "error", *extra)
    assert all(word in line for word in words), line


def test_a_port_in_use_is_named_with_the_fix(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(tmp_path, port=port)
    assert str(port) in line
    assert "--port" in line


def test_a_token_file_without_a_token_is_refused(tmp_path) -> None:
    (tmp_path / "token").write_text("# later\n")
    assert "holds no token" in refused(tmp_path)


def test_usage_errors_exit_with_2_and_help_teaches() -> None:
    wrong = subprocess.run([*COMMAND, "--capacity", "many"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    help_text = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("--token-file", "--exit-with", "SIGTERM", "/readyz", "Example"):
        assert word in help_text


def test_of_two_servers_on_one_port_the_second_says_so(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with server_process(tmp_path / "a") as first:
        port = str(urlsplit(first.url).port)
        second = subprocess.run(
            [*COMMAND, "--provider", "simulated", "--port", port, "--token-file", str(tmp_path / "b" / "token")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert second.returncode == 2
    assert "fix: --port" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1"])
def test_a_time_limit_is_a_number_of_seconds(seconds: str) -> None:
    refused = subprocess.run(
        [*COMMAND, "--provider", "simulated", f"--start-timeout-s={seconds}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_a_token_in_a_url_is_not_logged_at_any_level(tmp_path) -> None:
    with server_process(tmp_path, "--log-level", "debug") as server:
        assert httpx.get(f"{server.url}/v1/capacity?token={server.token}").status_code == 401
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        log = server.log
    assert "/healthz" in log
    assert server.token not in log
