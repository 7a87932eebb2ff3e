"""A client as the first trainer had it, with its own time-outs and retries, against the real server process."""

from __future__ import annotations

import inspect
import io
import subprocess
import time
from base64 import b64decode
from contextlib import closing
from pathlib import Path

import pytest
import requests
from PIL import Image
from server_process import arguments, server_process

from arpo.agent.profiles import get_profile
from arpo.server.cli import serve
from arpo.server.legacy_sessions import LegacySettings
from arpo.tasks.sets import load_suite

PAGE = (Path(__file__).parents[2] / "docs" / "legacy-api.md").read_text(encoding="utf-8")
PREFIX = "data:image/jpeg;base64,"
SCREEN = (1280, 720)
SUITE = load_suite("simulated")


class FirstClient:
    """Synchronous, one desktop, no session ids; only an evaluation is tried again."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self.http = requests.Session()
        if token is not None:
            self.http.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self.http.close()

    def reset(self, task_config: dict) -> dict:
        return self._post("reset", {"task_config": task_config}, 1200)

    def step(self, prediction: str) -> dict:
        return self._post("step", {"prediction": prediction}, 300)

    def evaluate(self) -> float:
        for attempt in range(3):
            try:
                return float(self._post("evaluate", {}, 300))
            except requests.RequestException:
                if attempt == 2:
                    raise
                time.sleep(0.1)
        raise AssertionError

    def history(self) -> list[dict]:
        return messages(self._post("history_messages", {}, 60)["history_messages"])

    def _post(self, name: str, body: dict, timeout_s: float):
        reply = self.http.post(f"{self.url}/env/{name}", json=body, timeout=timeout_s)
        reply.raise_for_status()
        return reply.json()


def messages(wire: list[dict]) -> list[dict]:
    """Messages as a policy's processor takes them: pictures as data URLs, whatever they hold."""

    def part(one: dict) -> dict:
        if one["type"] != "image":
            return one
        bounds = {"min_pixels": one["min_pixels"], "max_pixels": one["max_pixels"]}
        return {"type": "image", "image": PREFIX + one["b64"], **bounds}

    return [{"role": one["role"], "content": [part(p) for p in one["content"]]} for one in wire]


def pictures(conversation: list[dict]) -> list[tuple[int, int]]:
    """The sizes of a conversation's pictures; opening them proves that they are some."""
    parts = [part for message in conversation for part in message["content"] if part["type"] == "image"]
    return [Image.open(io.BytesIO(b64decode(part["image"].removeprefix(PREFIX)))).size for part in parts]


def played(client: FirstClient, task) -> float:
    """The score of a task's demonstration, said in the policy's words."""
    profile = get_profile("uitars-1.5", min_pixels=3136, max_pixels=2116800)
    turns = SUITE.demonstration(task).turns
    reply = client.reset(task.wire())
    assert (reply["env_idx"], reply["is_done"], reply["format_reward"]) == (0, False, 0.0)
    for number, turn in enumerate(turns, start=1):
        assert pictures(messages(reply["obs_messages"])) == [SCREEN] * number
        reply = client.step(profile.render(turn.thought, list(turn.actions), SCREEN))
        assert reply["format_reward"] == 0.0
    assert (reply["is_done"], reply["obs_messages"]) == (True, None)
    score = client.evaluate()
    assert client.evaluate() == score
    history = client.history()
    assert pictures(history) == [SCREEN] * len(turns)
    assert [message["role"] for message in history[3:]] == (["assistant", "user"] * len(turns))[:-1]
    return score


def test_the_first_client_plays_episodes_to_their_scores(tmp_path) -> None:
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("of-the-first-client\n")
    with (
        server_process(tmp_path) as server,
        closing(FirstClient(server.url, "of-the-first-client")) as client,
    ):
        assert client.http.get(f"{server.url}/health", timeout=10).json()["provider"] == "simulated"
        assert [played(client, task) for task in SUITE.task_set("smoke")] == [1.0] * 4


def test_the_page_shows_what_works_and_says_what_is(tmp_path) -> None:
    settings, prose = LegacySettings(), " ".join(PAGE.split())
    assert f"{settings.reset_limit_s:g} s in all" in prose
    assert f"without a request for {settings.idle_timeout_s:g} s" in prose
    assert f"the {settings.max_steps}th action" in prose
    example = PAGE.split("```python\n")[1].split("```")[0]
    task = SUITE.task_set("smoke")[0]
    profile = get_profile("uitars-1.5", min_pixels=3136, max_pixels=2116800)
    turns = iter(SUITE.demonstration(task).turns)

    def policy(conversation: list[dict]) -> str:
        turn = next(turns)
        return profile.render(turn.thought, list(turn.actions), SCREEN)

    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("of-the-page\n")
    with server_process(tmp_path) as server:
        names = {"url": server.url, "token": "of-the-page", "task": task.wire(), "policy": policy}
        exec(example, names)
    assert names["score"] == 1.0


def test_without_a_token_the_first_client_is_refused(tmp_path) -> None:
    with (
        server_process(tmp_path) as server,
        closing(FirstClient(server.url, None)) as client,
        pytest.raises(requests.HTTPError, match="401"),
    ):
        client.reset(SUITE.tasks()[0].wire())


def test_one_variable_lets_the_first_client_in_without_a_token(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ARPO_LEGACY_NO_TOKEN", "1")
    with server_process(tmp_path) as server, closing(FirstClient(server.url, None)) as client:
        assert played(client, SUITE.task_set("smoke")[0]) == 1.0
        status = {
            name: client.http.post(f"{server.url}/env/evaluate", timeout=10, **options).status_code
            for name, options in {
                "a page": {"json": {}, "headers": {"Origin": "http://evil.example"}},
                "a name that now means this machine": {"json": {}, "headers": {"Host": "evil.example"}},
                "a form": {"data": {"a": "b"}},
                "a wrong token": {"json": {}, "headers": {"Authorization": "Bearer wrong"}},
            }.items()
        }
        assert status == {
            "a page": 403,
            "a name that now means this machine": 403,
            "a form": 403,
            "a wrong token": 401,
        }
        assert client.http.get(f"{server.url}/v1/capacity", timeout=10).status_code == 401


def test_a_server_that_others_can_reach_does_not_start_without_tokens(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ARPO_LEGACY_NO_TOKEN", "1")
    ended = subprocess.run(
        arguments(tmp_path, "--host", "0.0.0.0"), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "ARPO_LEGACY_NO_TOKEN=1" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_the_port_is_the_one_that_its_clients_know() -> None:
    assert inspect.signature(serve).parameters["port"].default == 18082
