"""`arpo-env-server` from outside: plain requests, the processes below it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from server_process import ServerProcess, descendants, server_process, wait_gone

from arpo.protocol.codec import PROBLEM_JSON
from arpo.protocol.problems import Problem, ProblemError

SAVE = {"kind": "hotkey", "keys": ["ctrl", "s"]}
DONE = "/home/user/done.txt"

_SUBREAPER = 36


def typing_task(provider: str, **more: Any) -> dict[str, Any]:
    """A task that is solved when `typed(provider, "42")` was done: with a real program where there are real ones."""
    launch = ["xterm"] if provider == "xvfb" else ["notes", DONE]
    config = [{"type": "launch", "parameters": {"command": launch}}]
    if provider == "xvfb":
        config.append({"type": "activate_window", "parameters": {"window_name": "xterm"}})
    task: dict[str, Any] = {
        "id": "typing",
        "instruction": f"Write 42 into {DONE}.",
        "config": config,
        "evaluator": {
            "func": "exact_match",
            "result": {"type": "vm_command_line", "command": f"cat {DONE}", "shell": True},
            "expected": {"type": "rule", "rules": {"expected": "42"}},
        },
    }
    return task | more


def marked(task: dict[str, Any], mark: int) -> dict[str, Any]:
    """The task, with a process on its desktop by which the desktop is known from outside."""
    sleep = {"type": "launch", "parameters": {"command": ["sleep", str(mark)]}}
    return task | {"config": [*task["config"], sleep]}


def typed(provider: str, text: str) -> list[dict[str, Any]]:
    """Actions that write a text into the file."""
    if provider == "xvfb":
        return [
            {"kind": "type", "text": f"printf '%s' '{text}' > {DONE}\n"},
            {"kind": "wait", "seconds": 0.5},
        ]
    return [{"kind": "type", "text": text}, SAVE]


@dataclass
class Session:
    """A session and how far it is."""

    http: httpx.Client
    id: str
    lease: int
    seq: int = 0

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}"

    def send(self, actions: list[dict[str, Any]], **how: Any) -> httpx.Response:
        """The next step; once more if it takes longer than a request may."""
        body = {"lease": self.lease, "seq": self.seq + 1, "actions": actions}
        while (reply := self.http.post(f"{self.path}/step", json=body, **how)).status_code == 202:
            pass
        self.seq += reply.status_code == 200
        return reply

    def step(self, actions: list[dict[str, Any]]) -> dict[str, Any]:
        reply = self.send(actions)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def evaluate(self) -> httpx.Response:
        while (
            reply := self.http.post(f"{self.path}/evaluate", json={"lease": self.lease})
        ).status_code == 202:
            pass
        return reply

    def view(self, wait_s: float = 0.0) -> dict[str, Any]:
        reply = self.http.get(self.path, params={"wait_s": wait_s})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def close(self) -> None:
        assert self.http.delete(self.path).status_code == 204


class Door:
    """One running `arpo-env-server` and an authorised client of it."""

    def __init__(self, process: ServerProcess, provider: str, http: httpx.Client) -> None:
        self.process = process
        self.provider = provider
        self.http = http

    def create(self, task: dict[str, Any], **options: Any) -> Session:
        """A session, as soon as a desktop is free; its reset has begun."""
        created: dict[str, Any] = {}

        def asked() -> bool:
            reply = self.http.post("/v1/sessions", json={"task": task, "options": options})
            assert reply.status_code in (201, 503), reply.text
            created.update(reply.json())
            return reply.status_code == 201

        until(asked, "no desktop is free", 60)
        return Session(self.http, created["session_id"], created["lease"])

    def open(self, task: dict[str, Any] | None = None, **options: Any) -> Session:
        """A session whose reset has worked."""
        session = self.create(task or typing_task(self.provider), **options)
        view = session.view(wait_s=25)
        assert view["state"] == "ready", view
        return session

    def goes_on(self) -> None:
        """A fresh session is solved and scored, on every desktop."""
        capacity = self.http.get("/v1/capacity").json()["capacity"]
        sessions = [self.open() for _ in range(capacity)]
        for session in sessions:
            session.step(typed(self.provider, "42"))
            reply = session.evaluate()
            assert (reply.status_code, reply.json()) == (200, {"score": 1.0}), reply.text
            session.close()
        assert "Traceback" not in self.process.log, self.process.log

    def desktop_of(self, mark: int, *words: str) -> set[int]:
        """As `programs`, on the one desktop whose task was `marked`."""
        (marker,) = self.programs(f"sleep {mark}")
        world = Path(f"/proc/{marker}/ns/pid").readlink()
        return {pid for pid in self.programs(*words) if Path(f"/proc/{pid}/ns/pid").readlink() == world}

    def programs(self, *words: str) -> set[int]:
        """The processes below the server whose command line has all the words."""
        return {
            pid for pid in descendants(self.process.pid) if all(word in command_line(pid) for word in words)
        }


@contextlib.contextmanager
def door(folder: Path, *extra: str, provider: str, port: int = 0) -> Iterator[Door]:
    """Start an env-server; files of its own are in `folder`."""
    size = ("--screen", "640x480")
    with server_process(folder, *size, *extra, provider=provider, port=port) as process:
        headers = {"Authorization": f"Bearer {process.token}"}
        with httpx.Client(base_url=process.url, headers=headers, timeout=60, verify=False) as http:
            yield Door(process, provider, http)


def refused(reply: httpx.Response, *codes: str) -> Problem:
    """The problem that a reply is, of one of the codes and with everything that its code says."""
    assert reply.headers["content-type"] == PROBLEM_JSON, reply.text
    found = Problem.model_validate_json(reply.content)
    wanted = ProblemError(found.code, "")
    assert found.code.value in codes, found
    assert (reply.status_code, found.fault) == (wanted.status, wanted.fault)
    return found


def until(holds: Callable[[], bool], otherwise: str, timeout_s: float = 30.0) -> None:
    """Wait for something."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def command_line(pid: int) -> str:
    """A process' arguments; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[Path]:
    """A folder for everybody's temporary files; at the end it is empty, and no process that was started runs.

    What loses its parent meanwhile becomes a child of this process, so that no leftover process can hide.
    """
    prctl = ctypes.CDLL(None).prctl
    # short: a socket's path has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as folder:
        before = descendants(os.getpid())
        prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            yield Path(folder)
        finally:
            left = wait_gone(descendants(os.getpid()) - before)
            prctl(_SUBREAPER, 0, 0, 0, 0)
        assert not left, [command_line(pid) for pid in left]
        assert not list(Path(folder).iterdir()), sorted(map(str, Path(folder).rglob("*")))
