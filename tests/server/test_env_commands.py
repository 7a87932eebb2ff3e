"""`arpo env`, as a person uses it: a subprocess against a running server."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import httpx
import pytest
from server_process import ServerProcess, server_process

TASK = {"id": "open-the-moon", "instruction": "do it", "evaluator": {"func": "infeasible"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("env"), "--capacity", "2") as running:
        yield running


def arpo_env(*arguments: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "arpo.cli", "env", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == check, done.stdout + done.stderr
    return done


def access(server: ServerProcess) -> tuple[str, ...]:
    return ("--url", server.url, "--token-file", str(server.folder / "token"))


def document(server: ServerProcess) -> dict:
    return json.loads(arpo_env("status", *access(server), "--json").stdout)


def opened(server: ServerProcess) -> str:
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as http:
        while True:
            made = http.post("/v1/sessions", json={"task": TASK, "options": {"client_id": "run-7"}})
            if made.status_code == 201:
                session_id = made.json()["session_id"]
                http.get(f"/v1/sessions/{session_id}", params={"wait_s": 20})
                return session_id
            time.sleep(0.1)


def test_status_shows_desktops_and_sessions_and_reset_pool_replaces_them(server) -> None:
    session_id = opened(server)
    shown = arpo_env("status", *access(server)).stdout
    assert f"{server.url}: 2 × simulated, 1 free, 1 leased, 0 quarantined" in shown
    for word in ("trainer", "run-7", "open-the-moon", "ready"):
        assert word in shown, shown
    before = document(server)
    assert [desktop["state"] for desktop in before["desktops"]].count("leased") == 1
    assert [session["session_id"] for session in before["sessions"]] == [session_id]

    arpo_env("reset-pool", *access(server), "--sessions")
    (session,) = document(server)["sessions"]
    assert (session["state"], session["problem"]["code"]) == ("failed", "desktop_lost")
    assert "operator" in session["problem"]["detail"]
    opened(server)


def test_try_leases_a_desktop_clicks_and_has_it_scored(server, tmp_path) -> None:
    (tmp_path / "token").write_text(f"{server.token} trainer\n")
    tried = arpo_env("try", "--url", server.url, "--token-file", str(tmp_path / "token")).stdout
    assert "leased a simulated desktop, 1280×720" in tried
    assert "clicked at 640, 360" in tried
    assert "scored 1" in tried
    (tmp_path / "token").write_text("wrong\n")
    refused = arpo_env("try", "--url", server.url, "--token-file", str(tmp_path / "token"), check=1)
    assert "unauthorized" in refused.stderr
    gone = arpo_env(
        "try",
        "--url",
        "http://127.0.0.1:9",
        "--token-file",
        str(tmp_path / "token"),
        "--wait-s",
        "1",
        check=1,
    )
    assert "not ready after 1 s" in gone.stderr


def test_a_trainers_token_is_not_enough_and_the_message_names_the_fix(server, tmp_path) -> None:
    (tmp_path / "token").write_text(f"{server.token}\n")
    refused = arpo_env("status", "--url", server.url, "--token-file", str(tmp_path / "token"), check=2)
    assert "no token with scope admin" in refused.stderr
    assert server.token not in refused.stderr + refused.stdout
    (tmp_path / "token").write_text(f"{server.token} admin\n")
    lied = arpo_env("status", "--url", server.url, "--token-file", str(tmp_path / "token"), check=1)
    assert "forbidden" in lied.stderr


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(server) -> None:
    gone = arpo_env(
        "status", "--url", "http://127.0.0.1:9", "--token-file", str(server.folder / "token"), check=1
    )
    assert "backend_lost" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_help_teaches(server) -> None:
    assert "quarantined" in arpo_env("reset-pool", "--help").stdout
    assert "admin" in arpo_env("status", "--help").stdout
