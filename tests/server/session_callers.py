"""Several callers of one recorded env-server over plain HTTP, and the comparison of every answer with the model.

Nothing here is the product's client: a caller can send what no good client would.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgpack
from recorded_desktops import LoopThread, RecordedServer, task_of
from session_model import JOIN, START, Episode, observed

from arpo.protocol.actions import ACTIONS, Action
from arpo.protocol.codec import MSGPACK, PROBLEM_JSON
from arpo.protocol.problems import Problem, ProblemCode, ProblemError

ALICE, BOB, OPS, GATEWAY, NOBODY = "alice", "bob", "ops", "gateway", "nobody"
SCOPES = {ALICE: "trainer", BOB: "trainer", OPS: "admin", GATEWAY: "backend"}
TOKENS = {name: f"token-of-{name}" for name in SCOPES}
TOKEN_FILE = "".join(f"{TOKENS[name]} {scope} {name}\n" for name, scope in SCOPES.items())

Ask = Callable[[], httpx.Response]


class Callers:
    """The callers, their server, and the model: `episodes`, in the order of their creation."""

    def __init__(self, thread: LoopThread, tokens: Path, capacity: int) -> None:
        self.server = RecordedServer(thread, tokens, capacity)
        self.capacity = capacity
        self.episodes: list[Episode] = []
        self._numbers = itertools.count(1)
        self._threads = ThreadPoolExecutor(2)
        credentials = {name: {"Authorization": f"Bearer {token}"} for name, token in TOKENS.items()}
        self._http = {
            name: httpx.Client(
                base_url=self.server.url,
                headers={"Accept": MSGPACK, **headers},
                timeout=30,
                verify=False,  # there is no TLS here, and to load certificates takes longer than a whole run
            )
            for name, headers in (credentials | {NOBODY: {}}).items()
        }

    def close(self) -> None:
        """End the server; nothing of it may be left, and nothing in its log may be an error."""
        for client in self._http.values():
            client.close()
        self._threads.shutdown()
        self.server.stop()
        assert not self.server.errors.messages

    # Sending

    def send(self, caller: str, method: str, path: str, **how: Any) -> httpx.Response:
        return self._http[caller].request(method, path, **how)

    def about(
        self, episode: Episode, method: str, path: str = "", *, by: str = "", **how: Any
    ) -> httpx.Response:
        """A request about a session from its owner, or by somebody else; a sign of life if it may be one."""
        by = by or episode.owner
        if by in (episode.owner, OPS) and method != "DELETE":
            episode.last_request = self.server.clock.now
        return self.send(by, method, f"/v1/sessions/{episode.id}{path}", **how)

    def step(
        self, episode: Episode, seq: int, actions: list[Action], lease: int | None = None, wait_s: float = -1
    ) -> httpx.Response:
        body = step_body(episode.lease if lease is None else lease, seq, actions)
        return self.about(episode, "POST", "/step", json=body, params=_patience(episode, wait_s))

    def evaluate(self, episode: Episode, lease: int | None = None, wait_s: float = -1) -> httpx.Response:
        body = {"lease": episode.lease if lease is None else lease}
        return self.about(episode, "POST", "/evaluate", json=body, params=_patience(episode, wait_s))

    def create(self, owner: str, body: dict[str, Any], key: str | None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.send(owner, "POST", "/v1/sessions", json=body, headers=headers)

    def body(self, goal: str, idle_s: float) -> dict[str, Any]:
        """A creation of a session with a task that no other has."""
        task = task_of(f"t{next(self._numbers)}", goal)
        return {"task": task, "options": {"idle_timeout_s": idle_s, "client_id": "machine"}}

    def together(self, *asks: Ask) -> list[httpx.Response]:
        """Answers to requests that are sent at the same time."""
        return [future.result() for future in [self._threads.submit(ask) for ask in asks]]

    def meanwhile(self, ask: Ask) -> Ask:
        """Send a request that waits at the server; the call that is returned waits for its answer."""
        future = self._threads.submit(ask)
        time.sleep(0.01)  # so that it is likely to wait there: arriving later, it must be told the same
        return future.result

    # Comparing

    def begun(
        self, reply: httpx.Response, owner: str, goal: str, key: str | None, body: dict[str, Any]
    ) -> Episode:
        """The model of a session that was created just now."""
        created = read(reply, 201)
        episode = Episode(
            id=created["session_id"],
            lease=created["lease"],
            owner=owner,
            tag=body["task"]["id"],
            goal=goal,
            idle_s=body["options"]["idle_timeout_s"],
            key=key,
            body=body,
            last_request=self.server.clock.now,
        )
        assert created["state"] == "resetting"
        assert reply.headers["location"] == f"/v1/sessions/{episode.id}"
        assert episode.id not in {e.id for e in self.episodes}
        assert episode.lease not in {e.lease for e in self.episodes}
        self.episodes.append(episode)
        return episode

    def ready(self, episode: Episode) -> None:
        """Wait for a session's reset."""
        view = read(self.about(episode, "GET", params={"wait_s": 20}), 200)
        episode.state = "ready"
        assert view == shown(episode)

    def stepped(
        self,
        episode: Episode,
        seq: int,
        actions: list[Action],
        reply: httpx.Response,
        lease: int | None = None,
    ) -> None:
        """Compare the answer to a step with the model, and follow it."""
        wanted = episode.step_answer(episode.lease if lease is None else lease, seq, actions)
        if isinstance(wanted, ProblemCode):
            self._refused(episode, wanted, reply)
        elif wanted == JOIN:
            assert read(reply, 202) == shown(episode)
        else:
            if wanted == START:
                episode.applied(actions)
            assert read(reply, 200) == episode.last_reply

    def scored(self, episode: Episode, lease: int, reply: httpx.Response) -> None:
        """Compare the answer to an evaluation with the model, and follow it."""
        wanted = episode.evaluate_answer(lease)
        if isinstance(wanted, ProblemCode):
            self._refused(episode, wanted, reply)
        elif wanted == JOIN:
            assert read(reply, 202) == shown(episode)
        else:
            if wanted == START:
                episode.evaluated()
            assert read(reply, 200) == {"score": episode.score}

    def _refused(self, episode: Episode, wanted: ProblemCode, reply: httpx.Response) -> None:
        refused(reply, wanted)
        if wanted is ProblemCode.DESKTOP_LOST and episode.alive:
            episode.failed(wanted)

    def settled(self) -> int:
        """Wait until no desktop is being cleaned or replaced; how many can be leased then. Those are clean."""
        deadline = time.monotonic() + 10
        while True:
            desktops = read(self.send(OPS, "GET", "/v1/pool"), 200)["desktops"]
            states = [(d["state"], d["session_id"] is not None) for d in desktops]
            if all(state in {("free", False), ("leased", True)} for state in states):
                break
            assert time.monotonic() < deadline, f"a desktop does not come back: {desktops}"
            time.sleep(0.002)
        free = states.count(("free", False))
        alive = {e.tag for e in self.episodes if e.alive}
        assert free == self.capacity - len(alive)
        running = self.server.running()
        assert len(running) == self.capacity, "a guest too many, or too few"
        used = {recorder.tag for recorder in running if recorder.tag}
        assert used <= alive, f"no session holds the guest of {used - alive}, and it is not clean"
        return free


def step_body(lease: int, seq: int, actions: list[Action]) -> dict[str, Any]:
    return {"lease": lease, "seq": seq, "actions": ACTIONS.dump_python(actions, mode="json")}


def raw_step(episode: Episode, seq: int, actions: list[Action]) -> bytes:
    """A step as the bytes of its request."""
    body = json.dumps(step_body(episode.lease, seq, actions)).encode()
    head = (
        f"POST /v1/sessions/{episode.id}/step HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {TOKENS[episode.owner]}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read(reply: httpx.Response, status: int) -> dict[str, Any]:
    """A message, with its code in the place of a problem."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, MSGPACK), reply.text
    message = msgpack.unpackb(reply.content)
    if message.get("problem"):
        message["problem"] = message["problem"]["code"]
    return message


def refused(reply: httpx.Response, code: ProblemCode) -> Problem:
    """A problem with everything that its code says."""
    wanted = ProblemError(code, "")
    assert (reply.status_code, reply.headers["content-type"]) == (wanted.status, PROBLEM_JSON), reply.text
    problem = Problem.model_validate_json(reply.content)
    assert (problem.code, problem.fault, problem.retryable) == (code, wanted.fault, wanted.problem.retryable)
    assert problem.detail
    return problem


def shown(episode: Episode) -> dict[str, Any]:
    """The session as GET shows it."""
    return {
        "session_id": episode.id,
        "state": episode.state,
        "seq": episode.seq,
        "observation": observed(episode.screen()) if episode.state == "ready" else None,
        "score": episode.score,
        "problem": episode.problem,
    }


def _patience(episode: Episode, wait_s: float) -> dict[str, float]:
    """How long a request may wait: not at all for a desktop that waits itself, unless that is told."""
    return {"wait_s": wait_s if wait_s >= 0 else 0.0 if episode.busy else 20.0}
