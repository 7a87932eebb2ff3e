"""A small OpenAI-compatible model server on a real socket, whose answers and troubles a test scripts."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image

from arpo.agent.profiles import Profile
from arpo.tasks.sets import load_suite

KEY = "sk-a-key-that-nothing-may-show"
SEEDS = 2**31
Trouble = Callable[[], Any]
"""Makes a response in place of an answer; None: never answer."""


def refusal(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI words it."""
    document = {"error": {"message": message, "type": "error", "code": code}}
    return JSONResponse(document, status, headers)


@dataclass
class ModelServer:
    """answer: the text for a request's body. troubles: what the next requests get instead, one each."""

    answer: Callable[[dict[str, Any]], Any] = lambda body: "Thought: Done.\nAction: finished()"
    key: str | None = None
    troubles: list[JSONResponse | None] = field(default_factory=list)
    delay_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""

    async def complete(self, request: Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(time.monotonic())
        if self.troubles:
            trouble = self.troubles.pop(0)
            if trouble is None:
                await asyncio.sleep(3600)
            return trouble
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(self.delay_s)
        self.at_once -= 1
        message = {"role": "assistant", "content": self.answer(body)}
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }


@contextmanager
def model_server(script: ModelServer) -> Iterator[ModelServer]:
    """It serves while the context is open; `url` is its base URL."""
    app = FastAPI()
    app.post("/v1/chat/completions")(script.complete)
    listener = socket.create_server(("127.0.0.1", 0))
    script.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield script
    finally:
        server.should_exit = True
        thread.join(10)


def turn_of(body: dict[str, Any]) -> int:
    """Which assistant turn is asked for, from 0."""
    return sum(message["role"] == "assistant" for message in body["messages"])


def episode_seed(body: dict[str, Any]) -> int:
    """The seed of the episode, the same on each of its turns."""
    return int(body["seed"] - turn_of(body)) % SEEDS


def pictures(body: dict[str, Any]) -> list[tuple[int, int]]:
    """Sizes of the pictures that are shown."""
    sizes = []
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    return sizes


def demonstrations(suite_name: str, ids: set[str], profile: Profile) -> Callable[[dict[str, Any]], str]:
    """Answers that solve a suite's tasks, or give up at once: half of the episodes each, by their seeds."""
    suite = load_suite(suite_name)
    scripts = {}
    for task in [task for task in suite.tasks() if task.id in ids]:
        demonstration = suite.demonstration(task)
        if demonstration is not None:
            scripts[profile.user_prompt(task.instruction)] = [
                profile.render(turn.thought, list(turn.actions), demonstration.screen)
                for turn in demonstration.turns
            ]

    def answer(body: dict[str, Any]) -> str:
        if episode_seed(body) % 2:
            return "Thought: Too hard.\nAction: finished()"
        prompt = next(m["content"] for m in body["messages"] if m["role"] == "user")
        return scripts[prompt][turn_of(body)]

    return answer
