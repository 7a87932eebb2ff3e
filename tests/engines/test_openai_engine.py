"""The `openai` engine against a real server: what it asks, when it asks again, and what it never shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from arpo.config.sections import OpenAISection
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import EngineError, EngineUnusableError, Message, Sampling, WordsEngine
from arpo.rollout.engines.openai import OpenAIEngine, api_key, base_url
from model_server import KEY, ModelServer, model_server, refusal

ASKED = [Message("system", "You help."), Message("user", picture=b"png", media_type="image/png")]
SAMPLING = Sampling(temperature=0.6, top_p=0.9, max_new_tokens=64, seed=2**40 + 5)


def with_engine(
    script: ModelServer,
    story: Callable[[OpenAIEngine], Awaitable[Any]],
    key: str | None = None,
    **section: Any,
) -> Any:
    async def main(url: str) -> Any:
        settings = {"url": url, "model": "m", "outage_s": 5.0} | section
        engine = OpenAIEngine(OpenAISection(**settings), key)
        assert isinstance(engine, WordsEngine)
        try:
            return await story(engine)
        finally:
            await engine.close()

    with model_server(script):
        return asyncio.run(main(script.url))


async def ask(engine: OpenAIEngine) -> str:
    return (await engine.say(ASKED, SAMPLING)).text


def test_a_request_is_a_chat_completion_with_the_sampling_that_was_asked_for() -> None:
    script = ModelServer(lambda body: "Action: wait()")
    assert (
        with_engine(script, ask, parameters={"max_tokens": None, "max_completion_tokens": 9})
        == "Action: wait()"
    )
    (body,) = script.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You help."},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}],
            },
        ],
        "temperature": 0.6,
        "top_p": 0.9,
        "seed": 5,
        "max_completion_tokens": 9,
    }
    assert "authorization" not in script.headers[0]


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), ("", "")],
)
def test_an_answer_without_text_is_the_policys_own_fault_and_no_error(content, text) -> None:
    assert with_engine(ModelServer(lambda body: content), ask) == text


def test_an_overloaded_and_failing_server_is_asked_again_when_it_says() -> None:
    script = ModelServer(
        troubles=[
            refusal(429, "slow down", headers={"Retry-After": "1"}),
            refusal(500, "oops"),
            refusal(503, "busy"),
        ]
    )

    async def story(engine: OpenAIEngine) -> float:
        return (await engine.say(ASKED, SAMPLING)).queued_s

    queued_s = with_engine(script, story)
    assert len(script.bodies) == 4
    assert script.bodies[0] == script.bodies[-1]
    assert script.times[1] - script.times[0] >= 1.0
    assert queued_s >= 1.0, "waiting for the server is queueing: fewer episodes at once"


def test_a_request_that_hangs_is_given_up_and_sent_again() -> None:
    script = ModelServer(troubles=[None])
    started = time.monotonic()
    assert "finished" in with_engine(script, ask, timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert len(script.bodies) == 2


def test_a_server_that_stays_away_is_an_error_with_its_own_words() -> None:
    script = ModelServer(troubles=[refusal(503, "loading the model")] * 9)
    with pytest.raises(EngineError, match=r"status 503: loading the model \(tried [1-9]×\)"):
        with_engine(script, ask, outage_s=1.0)
    with pytest.raises(EngineError, match=r"status 429: later \(tried 1×\)"):
        with_engine(ModelServer(troubles=[refusal(429, "later", headers={"Retry-After": "3600"})]), ask)
    with pytest.raises(EngineError, match=r"tried 1×"):
        with_engine(ModelServer(), ask, url="http://127.0.0.1:1", outage_s=0)


def test_a_request_that_cannot_be_answered_fails_alone_and_is_not_repeated() -> None:
    script = ModelServer(troubles=[refusal(400, "the prompt is too long")])

    async def story(engine: OpenAIEngine) -> str:
        with pytest.raises(EngineError, match="status 400: the prompt is too long"):
            await ask(engine)
        return await ask(engine)

    assert "finished" in with_engine(script, story)
    assert len(script.bodies) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(404, "no model m"),
        refusal(403, "not yours"),
        refusal(429, "no money left", code="insufficient_quota"),
    ],
)
def test_what_no_request_can_succeed_with_ends_everything_at_once(trouble) -> None:
    with pytest.raises(
        EngineUnusableError, match=r"refuses every request: status 4.*; fix: engine\.openai\.url"
    ):
        with_engine(ModelServer(troubles=[trouble]), ask)


def test_a_key_is_sent_and_never_shown_even_if_the_server_repeats_it() -> None:
    assert "finished" in with_engine(ModelServer(key=KEY), ask, key=KEY)
    with pytest.raises(EngineUnusableError, match=r"Incorrect API key provided: Bearer \*\*\*") as caught:
        with_engine(ModelServer(key="another"), ask, key=KEY)
    assert KEY not in str(caught.value)


def test_many_requests_run_at_once_over_one_engine() -> None:
    script = ModelServer(delay_s=0.2)

    async def story(engine: OpenAIEngine) -> list[str]:
        return await asyncio.gather(*(ask(engine) for _ in range(20)))

    assert len(with_engine(script, story)) == 20
    assert script.most_at_once == 20


def test_the_key_comes_from_the_file_else_from_the_environment(tmp_path, monkeypatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    assert api_key(OpenAISection(api_key_file=file)) == KEY
    assert api_key(OpenAISection()) == "of-the-environment"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert api_key(OpenAISection()) is None
    file.write_text(f"key: {KEY}")
    with pytest.raises(ConfigError, match="holds no API key; fix: ") as caught:
        api_key(OpenAISection(api_key_file=file))
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        api_key(OpenAISection(api_key_file=tmp_path / "none"))


def test_a_bare_host_stands_for_its_v1() -> None:
    assert base_url("http://h:8000/") == base_url("http://h:8000") == "http://h:8000/v1"
    assert base_url("https://h/api/v3/") == "https://h/api/v3"
