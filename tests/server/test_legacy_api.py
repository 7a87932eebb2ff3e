"""The legacy API over real sockets: shapes, ends of episodes, retries, tokens, and faults that are no rewards."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode

import httpx
import pytest
from scripted_desktop import SCREEN, TASK, TOKEN, Script, env_server, lost, picture
from test_env_server_wire import problem

from arpo.protocol.actions import Click, Fail
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.server.legacy import LegacySettings

OTHER = "the-token-of-somebody-else"
CLICK = "Thought: There.\nAction: click(start_box='(10,10)')"
FINISHED = "Thought: Done.\nAction: finished(content='')"
RESET = {"task_config": TASK}
OVER = {"env_idx": 0, "obs_messages": None, "is_done": True, "format_reward": 0.0}
SLOW = 0.4


def serve(folder, story, script: Script | None = None, *, ready: bool = True, **settings) -> Script:
    """Run an env-server and a story with it and two clients; afterwards every desktop that was started is closed."""
    script = script or Script()
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(f"{TOKEN}\n{OTHER}\n")

    async def main() -> None:
        async with (
            env_server(folder, script, **settings) as server,
            http(server) as one,
            http(server, OTHER) as two,
        ):
            if ready:
                await server.client.wait_ready(5)
            await story(server, one, two)

    asyncio.run(main())
    assert script.started == script.closed, "a desktop was left behind"
    return script


def http(server, token: str = TOKEN) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


async def call(client: httpx.AsyncClient, name: str, body: dict | None = None, **options):
    """The document that a call answers."""
    reply = await client.post(f"/env/{name}", json=body or {}, **options)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json"), reply.text
    return reply.json()


async def step(client: httpx.AsyncClient, prediction: str = CLICK, **options):
    return await call(client, "step", {"prediction": prediction}, **options)


async def free(server, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while (await server.client.capacity()).free != count:
            await asyncio.sleep(0.01)


def slow(result: object = None):
    async def wait(desktop) -> object:
        await asyncio.sleep(SLOW)
        return result

    return wait


def pictures(messages: list[dict]) -> list[bytes]:
    parts = [part for message in messages for part in message["content"]]
    return [b64decode(part["b64"], validate=True) for part in parts if part["type"] == "image"]


# Shapes


def test_an_episode_has_the_shapes_of_the_first_server(tmp_path) -> None:
    async def story(server, one, two) -> None:
        opened = await call(one, "reset", RESET)
        assert set(opened) == {"env_idx", "obs_messages", "is_done", "format_reward"}
        assert (opened["env_idx"], opened["is_done"], opened["format_reward"]) == (0, False, 0.0)
        system, prompt, screen = opened["obs_messages"]
        assert system == {
            "role": "system",
            "content": [{"type": "text", "text": "You are a helpful assistant."}],
        }
        assert (prompt["role"], set(prompt["content"][0])) == ("user", {"type", "text"})
        assert prompt["content"][0]["text"].endswith("\ndo it")
        (shown,) = screen["content"]
        assert screen["role"] == "user"
        assert set(shown) == {"type", "b64", "min_pixels", "max_pixels"}
        assert (shown["type"], shown["min_pixels"], shown["max_pixels"]) == ("image", 3136, 2116800)
        assert b64decode(shown["b64"], validate=True) == picture(0)

        stepped = await step(one)
        assert set(stepped) == set(opened)
        assert (stepped["env_idx"], stepped["is_done"], stepped["format_reward"]) == (0, False, 0.0)
        *before, said, _ = stepped["obs_messages"]
        assert before == opened["obs_messages"]
        assert (said["role"], said["content"][0]["type"]) == ("assistant", "text")
        assert pictures(stepped["obs_messages"]) == [picture(0), picture(1)]
        assert await call(one, "history_messages") == {"history_messages": stepped["obs_messages"]}

        assert await step(one, FINISHED) == OVER
        scored = await one.post("/env/evaluate", json={})
        assert (scored.status_code, scored.text) == (200, "1.0")
        history = (await call(one, "history_messages"))["history_messages"]
        assert history[:-1] == stepped["obs_messages"]
        assert history[-1] == {"role": "assistant", "content": [{"type": "text", "text": FINISHED}]}

    script = serve(tmp_path, story)
    # (10, 10) of the 168x112 that 160x120 is resized to
    assert script.executed[0] == [Click(x=10, y=11)]


def test_health_names_the_provider(tmp_path) -> None:
    async def story(server, one, two) -> None:
        reply = (await one.get("/health")).json()
        assert (reply["status"], reply["provider"], reply["capacity"], reply["free"]) == (
            "ok",
            "scripted",
            1,
            1,
        )

    serve(tmp_path, story)


def test_bodies_may_be_missing_where_nothing_is_said(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", {**RESET, "slot_id": 3})
        assert (await one.post("/env/history_messages")).status_code == 200
        assert (await one.post("/env/evaluate")).json() == 1.0

    serve(tmp_path, story)


def test_every_screenshot_comes_again_with_every_step_also_one_that_did_not_change(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        await step(one)
        assert pictures((await step(one))["obs_messages"]) == [picture(7)] * 3

    serve(tmp_path, story, Script(screen=lambda number: picture(7)))


def test_the_profile_is_a_setting(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        await step(one, "Action: click(start_box='(500,500)')")

    script = serve(tmp_path, story, legacy=LegacySettings(profile="uitars-1"))
    assert script.executed == [[Click(x=SCREEN[0] // 2, y=SCREEN[1] // 2)]]


def test_the_contract_has_examples_and_errors(tmp_path) -> None:
    async def story(server, one, two) -> None:
        document = (await one.get("/openapi.json")).json()
        for path in ("/env/reset", "/env/step", "/env/evaluate", "/env/history_messages"):
            responses = document["paths"][path]["post"]["responses"]
            assert {"200", "401", "403", "408", "413", "422"} <= set(responses), path
        for name in ("LegacyReset", "LegacyStep", "LegacyObservation", "LegacyHistory", "LegacyHealth"):
            assert document["components"]["schemas"][name]["examples"], name

    serve(tmp_path, story)


# The end of an episode


@pytest.mark.parametrize("end", ["finished(content='')", "error_env()", "call_user()"])
def test_a_terminal_call_ends_the_episode(tmp_path, end: str) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        assert await step(one, f"Action: {end}") == OVER
        problem(await one.post("/env/step", json={"prediction": CLICK}), 422, "invalid_request")
        assert await call(one, "evaluate") == 1.0

    (executed,) = serve(tmp_path, story).executed
    assert isinstance(executed[0], Fail) == (not end.startswith("finished"))


def test_sixteen_actions_are_performed_and_no_more(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        five = "Action: " + "\n\n".join(["click(start_box='(10,10)')"] * 5)
        for _ in range(3):
            assert not (await step(one, five))["is_done"]
        assert await step(one, five) == OVER
        problem(await one.post("/env/step", json={"prediction": five}), 422, "invalid_request")

    script = serve(tmp_path, story)
    assert [len(actions) for actions in script.executed] == [5, 5, 5, 1]


def test_what_is_no_action_costs_the_format_reward_and_touches_no_desktop(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        assert await step(one, "Let me think.") == {**OVER, "format_reward": -1.0}
        problem(await one.post("/env/step", json={"prediction": CLICK}), 422, "invalid_request")
        assert (await call(one, "history_messages"))["history_messages"][-1]["content"][0][
            "text"
        ] == "Let me think."
        assert await call(one, "evaluate") == 1.0

    assert serve(tmp_path, story).executed == []


def test_a_prediction_without_end_is_no_action_and_is_kept_only_in_part(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        assert await step(one, CLICK + " " * 200_000) == {**OVER, "format_reward": -1.0}
        said = (await call(one, "history_messages"))["history_messages"][-1]["content"][0]["text"]
        assert said.startswith("Thought: There.")
        assert len(said) < 100_100
        assert await call(one, "evaluate") == 1.0

    assert serve(tmp_path, story).executed == []


def test_half_an_emoji_in_a_prediction_does_no_harm(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        body = json.dumps({"prediction": CLICK.replace("There", "\ud83d and \U0001f600")})
        reply = await one.post("/env/step", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 200
        assert reply.json()["obs_messages"][3]["content"][0]["text"].startswith(
            "Thought: \ufffd and \U0001f600."
        )

    assert len(serve(tmp_path, story).executed) == 1


def test_without_a_reset_there_is_no_episode(tmp_path) -> None:
    async def story(server, one, two) -> None:
        problem(await one.post("/env/step", json={"prediction": CLICK}), 409, "lease_lost")
        problem(await one.post("/env/evaluate", json={}), 409, "lease_lost")
        assert await call(one, "history_messages") == {"history_messages": []}
        problem(await one.post("/env/reset", json={}), 422, "invalid_request")
        problem(await one.post("/env/step", json={"prediction": 7}), 422, "invalid_request")

    assert serve(tmp_path, story).resets == []


def test_an_evaluation_happens_once_and_gives_the_desktop_back(tmp_path) -> None:
    evaluations = []

    def evaluate(desktop):
        evaluations.append(desktop.number)
        return slow(0.5)(desktop)

    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        with pytest.raises(httpx.ReadTimeout):
            await call(one, "evaluate", timeout=SLOW / 4)
        assert await asyncio.gather(call(one, "evaluate"), call(one, "evaluate")) == [0.5, 0.5]
        await free(server)
        assert await call(one, "evaluate") == 0.5
        assert len((await call(one, "history_messages"))["history_messages"]) == 3
        problem(await one.post("/env/step", json={"prediction": CLICK}), 422, "invalid_request")

    serve(tmp_path, story, Script(evaluate=evaluate))
    assert len(evaluations) == 1


# Retries


def test_the_same_step_at_the_same_time_is_performed_once(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        replies = await asyncio.gather(*(step(one) for _ in range(3)))
        assert replies[0] == replies[1] == replies[2]
        assert pictures(replies[0]["obs_messages"]) == [picture(0), picture(1)]

    assert len(serve(tmp_path, story, Script(execute=slow())).executed) == 1


def test_other_steps_wait_for_their_turn(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        twice = "Action: click(start_box='(1,1)')\n\nclick(start_box='(2,2)')"
        replies = await asyncio.gather(step(one), step(one, twice))
        assert sorted(len(reply["obs_messages"]) for reply in replies) == [5, 7]

    assert len(serve(tmp_path, story, Script(execute=slow())).executed) == 2


def test_a_step_whose_client_hung_up_is_answered_to_its_retry_and_not_performed_again(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        with pytest.raises(httpx.ReadTimeout):
            await step(one, timeout=SLOW / 4)
        await asyncio.sleep(2 * SLOW)
        reply = await step(one)
        assert pictures(reply["obs_messages"]) == [picture(0), picture(1)]
        # Its reply was seen: the same words again are a new step.
        assert pictures((await step(one))["obs_messages"]) == [picture(0), picture(1), picture(2)]

    assert len(serve(tmp_path, story, Script(execute=slow())).executed) == 2


def test_the_same_reset_at_the_same_time_is_one_reset(tmp_path) -> None:
    async def story(server, one, two) -> None:
        replies = await asyncio.gather(*(call(one, "reset", RESET) for _ in range(3)))
        assert replies[0] == replies[1] == replies[2]
        assert not replies[0]["is_done"]

    assert serve(tmp_path, story, Script(reset=slow())).resets == ["t"]


def test_another_reset_takes_the_place_of_the_running_one(tmp_path) -> None:
    async def story(server, one, two) -> None:
        first = asyncio.create_task(one.post("/env/reset", json=RESET))
        await asyncio.sleep(SLOW / 2)
        second = await call(one, "reset", {"task_config": {**TASK, "id": "u", "instruction": "another"}})
        assert second["obs_messages"][1]["content"][0]["text"].endswith("another")
        problem(await first, 409, "lease_lost")
        await step(one)

    script = serve(tmp_path, story, Script(reset=slow()))
    assert script.resets == ["t", "u"]


# Tokens and desktops


def test_a_token_has_one_episode_and_its_next_reset_ends_it(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        await step(one)
        again = await call(one, "reset", RESET)
        assert pictures(again["obs_messages"]) == [picture(0)]
        assert (await server.client.capacity()).busy == 1

    assert serve(tmp_path, story, capacity=2).resets == ["t", "t"]


def test_two_tokens_have_different_desktops_and_see_nothing_of_each_other(tmp_path) -> None:
    async def story(server, one, two) -> None:
        ten = "Action: " + "\n\n".join(["click(start_box='(10,10)')"] * 10)
        await asyncio.gather(call(one, "reset", RESET), call(two, "reset", RESET))
        await asyncio.gather(step(one), step(two, ten))
        mine, theirs = await asyncio.gather(step(one), call(two, "history_messages"))
        assert pictures(mine["obs_messages"]) == [picture(0), picture(1), picture(2)]
        assert pictures(theirs["history_messages"]) == [picture(0), picture(10)]
        assert (await server.client.capacity()).busy == 2
        await call(one, "evaluate")
        assert len((await call(two, "history_messages"))["history_messages"]) == 5
        assert not (await step(two, "Action: wait()"))["is_done"]

    serve(tmp_path, story, capacity=2)


def test_a_reset_waits_for_a_desktop(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        waiting = asyncio.create_task(call(two, "reset", RESET))
        await asyncio.sleep(SLOW)
        assert not waiting.done()
        assert (await one.get("/healthz")).status_code == 200
        await call(one, "evaluate")
        assert not (await waiting)["is_done"]

    serve(tmp_path, story)


def test_a_reset_that_finds_no_desktop_in_time_has_failed(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        assert await call(two, "reset", RESET) == OVER
        assert "0.3 s" in problem(await two.post("/env/evaluate", json={}), 502, "reset_failed").detail
        assert not (await step(one))["is_done"]

    serve(tmp_path, story, legacy=LegacySettings(reset_limit_s=0.3))


def test_nobody_waits_for_a_desktop_in_the_name_of_a_client_that_hung_up(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        with pytest.raises(httpx.ReadTimeout):
            await call(two, "reset", RESET, timeout=0.1)
        await asyncio.sleep(2 * SLOW)
        await call(one, "evaluate")
        await free(server)
        await asyncio.sleep(2 * SLOW)
        assert (await server.client.capacity()).free == 1

    assert serve(tmp_path, story).resets == ["t"]


def test_an_episode_that_fell_silent_is_closed_and_forgotten(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        await free(server)
        assert await call(one, "history_messages") == {"history_messages": []}
        assert (
            "0.3 s"
            in problem(await one.post("/env/step", json={"prediction": CLICK}), 409, "lease_lost").detail
        )
        problem(await one.post("/env/evaluate", json={}), 409, "lease_lost")

    serve(tmp_path, story, legacy=LegacySettings(idle_timeout_s=0.3))


def test_an_idle_timeout_that_no_session_can_have_is_refused() -> None:
    LegacySettings(idle_timeout_s=3600)
    for wrong in (0, 3601):
        with pytest.raises(ConfigError, match="at most 3600 s"):
            LegacySettings(idle_timeout_s=wrong)


def test_without_a_valid_token_nothing_is_told_but_health(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with httpx.AsyncClient(base_url=server.url, headers=headers) as stranger:
                for name in ("reset", "step", "evaluate", "history_messages"):
                    problem(await stranger.post(f"/env/{name}", json={}), 401, "unauthorized")
                assert (await stranger.get("/health")).json()["status"] == "ok"

    serve(tmp_path, story)


# Faults


def test_a_reset_that_fails_is_done_without_messages_and_is_never_scored(tmp_path) -> None:
    failures = [ProblemError(ProblemCode.SETUP_FAILED, "no such file"), None]

    async def story(server, one, two) -> None:
        assert await call(one, "reset", RESET) == OVER
        for name, body in (("evaluate", {}), ("step", {"prediction": CLICK})):
            found = problem(await one.post(f"/env/{name}", json=body), 502, "setup_failed")
            assert (found.fault.value, found.detail) == ("environment", "no such file")
        assert await call(one, "history_messages") == {"history_messages": []}
        assert not (await call(one, "reset", RESET))["is_done"]

    serve(tmp_path, story, Script(reset=lambda desktop: failures.pop(0)))


WRONG_TASKS = [
    ({"id": "x"}, "instruction: field required"),
    (
        {**TASK, "evaluator": {"func": "exact_mach", "result": {"type": "rule"}}},
        "unknown metric 'exact_mach'",
    ),
    ({}, "id: field required"),
    ({**TASK, "id": "é\nForged: 1\r"}, "id: "),
]


@pytest.mark.parametrize(("task", "reason"), WRONG_TASKS)
def test_a_task_that_is_wrong_is_a_reset_that_failed_and_the_reason_is_told(
    tmp_path, caplog, task, reason: str
) -> None:
    async def story(server, one, two) -> None:
        reply = await one.post("/env/reset", json={"task_config": task})
        assert (reply.status_code, reply.json()) == (200, OVER)
        assert reply.headers["arpo-problem"].startswith("invalid_task: task_config: ")
        assert reason in reply.headers["arpo-problem"]
        (logged,) = (r.getMessage() for r in caplog.records if "legacy reset" in r.getMessage())
        assert logged.isprintable()
        for name, body in (("evaluate", {}), ("step", {"prediction": CLICK})):
            found = problem(await one.post(f"/env/{name}", json=body), 422, "invalid_task")
            assert (found.fault.value, reason in found.detail) == ("client", True)
        opened = await one.post("/env/reset", json=RESET)
        assert not opened.json()["is_done"]
        assert "arpo-problem" not in opened.headers
        await one.post("/env/reset", json={"task_config": task})
        await free(server)

    assert serve(tmp_path, story).resets == ["t"]


def test_why_a_reset_failed_is_one_short_line_of_a_header(tmp_path) -> None:
    why = ProblemError(ProblemCode.SETUP_FAILED, "keine Datei\nSet-Cookie: é\x1b[2J" + "x" * 100_000)

    async def story(server, one, two) -> None:
        found = (await one.post("/env/reset", json=RESET)).headers["arpo-problem"]
        assert found.startswith("setup_failed: keine Datei?Set-Cookie: ??[2Jxxx")
        assert len(found) < 600

    serve(tmp_path, story, Script(reset=lambda desktop: why))


def test_a_server_without_any_desktop_is_unavailable(tmp_path) -> None:
    async def story(server, one, two) -> None:
        async with asyncio.timeout(5):
            while (await one.get("/readyz")).json()["code"] != "start_failed":
                await asyncio.sleep(0.01)
        assert (
            "no guest today" in problem(await one.post("/env/reset", json=RESET), 503, "start_failed").detail
        )
        problem(await one.post("/env/evaluate", json={}), 409, "lease_lost")

    script = Script(start=lambda count: lost())

    async def counted(server, one, two) -> None:
        await story(server, one, two)
        script.closed = script.started  # none was ever there

    serve(tmp_path, counted, script, ready=False)


@pytest.mark.parametrize("prediction", [CLICK, "no action at all"])
def test_a_lost_desktop_is_a_problem_and_no_reward(tmp_path, prediction: str) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        problem(await one.post("/env/step", json={"prediction": CLICK}), 502, "desktop_lost")
        again = await one.post("/env/step", json={"prediction": prediction})
        assert problem(again, 502, "desktop_lost").fault.value == "environment"
        assert "format_reward" not in again.text
        problem(await one.post("/env/evaluate", json={}), 502, "desktop_lost")

    serve(tmp_path, story, Script(execute=lambda desktop: lost()))


def test_an_evaluator_that_raises_gives_no_score(tmp_path) -> None:
    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        for _ in range(2):
            found = problem(await one.post("/env/evaluate", json={}), 502, "evaluator_failed")
            assert "kaputt" in found.detail

    serve(tmp_path, story, Script(evaluate=lambda desktop: ValueError("kaputt")))


def test_a_server_that_is_stopping_tells_those_who_wait(tmp_path) -> None:
    replies = []

    async def story(server, one, two) -> None:
        await call(one, "reset", RESET)
        waiting = asyncio.create_task(two.post("/env/reset", json=RESET))
        await asyncio.sleep(SLOW / 2)
        await server.server.manager.drain(0.0)
        replies.append(await waiting)
        replies.append(await one.post("/env/step", json={"prediction": CLICK}))

    serve(tmp_path, story)
    problem(replies[0], 503, "capacity")
    problem(replies[1], 502, "backend_lost")
