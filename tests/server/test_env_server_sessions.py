"""Sessions over HTTP: what is repeated, refused, reaped, interrupted and given back."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time

import httpx
import pytest
from PIL import Image
from scripted_desktop import TASK, Harness, Script, env_server, limits
from test_env_server_wire import CLICK, opened, problem

from arpo.protocol.actions import Click, Fail, Finished
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import Fault, ProblemCode, ProblemError

SLOW = 0.4


def serve(folder, story, script: Script | None = None, **settings) -> Script:
    """Run an env-server and a story with it; afterwards every desktop that was started is closed."""
    script = script or Script()

    async def main() -> None:
        async with (
            env_server(folder, script, **settings) as server,
            httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as http,
        ):
            await server.client.wait_ready(5)
            await story(server, http)

    asyncio.run(main())
    assert script.started == script.closed, "a desktop was left behind"
    return script


async def free(server: Harness, count: int = 1, timeout_s: float = 5.0) -> float:
    """Wait until so many desktops are free; returns the seconds it took."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while (await server.client.capacity()).free != count:
            await asyncio.sleep(0.01)
    return time.monotonic() - begun


def slow(result: object = None):
    async def wait(desktop) -> object:
        await asyncio.sleep(SLOW)
        return result

    return wait


def fault(caught) -> tuple[ProblemCode, Fault]:
    return caught.value.code, caught.value.fault


def test_a_repeated_step_gets_the_same_reply_and_touches_nothing(tmp_path) -> None:
    async def story(server, http) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        replies = [await http.post(f"{path}/step", json=body) for _ in range(3)]
        assert len({reply.content for reply in replies}) == 1
        assert replies[0].json()["seq"] == 1

    assert len(serve(tmp_path, story).executed) == 1


def test_a_step_whose_client_hung_up_is_applied_once_and_its_retry_joins_it(tmp_path) -> None:
    async def story(server, http) -> None:
        path, lease = await opened(http)
        body = {"lease": lease, "seq": 1, "actions": [CLICK]}
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{path}/step", json=body, timeout=SLOW / 4)
        problem(await http.post(f"{path}/evaluate", json={"lease": lease}), 409, "not_ready")
        replies = await asyncio.gather(*(http.post(f"{path}/step", json=body) for _ in range(3)))
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.content for reply in replies}) == 1

    assert len(serve(tmp_path, story, Script(execute=slow())).executed) == 1


def test_a_full_server_says_so_and_a_released_desktop_is_reset_for_the_next_task(tmp_path) -> None:
    async def story(server, http) -> None:
        first, _ = await opened(http)
        detail = problem(await http.post("/v1/sessions", json={"task": TASK}), 503, "capacity").detail
        assert "1 leased" in detail
        assert (await http.delete(first)).status_code == 204
        assert (await http.delete(first)).status_code == 204
        await opened(http)
        view = (await http.get(first)).json()
        assert (view["state"], view["problem"]["code"]) == ("closed", "lease_lost")
        problem(
            await http.post(f"{first}/step", json={"lease": 1, "seq": 1, "actions": []}), 409, "lease_lost"
        )

    script = serve(tmp_path, story)
    assert (script.started, script.resets) == (1, ["t", "t"])


def test_a_long_poll_ends_with_the_reset_and_not_before(tmp_path) -> None:
    async def story(server, http) -> None:
        created = (await http.post("/v1/sessions", json={"task": TASK})).json()
        path = f"/v1/sessions/{created['session_id']}"
        assert (await http.get(path)).json()["state"] == "resetting"
        assert (await http.get(path, params={"wait_s": 0.05})).json()["state"] == "resetting"
        begun = time.monotonic()
        view = (await http.get(path, params={"wait_s": 25})).json()
        assert time.monotonic() - begun < 2 * SLOW
        assert (view["state"], view["seq"]) == ("ready", 0)
        assert view["observation"]["screenshot"]["width"] == 160

    serve(tmp_path, story, Script(reset=slow()))


def test_silent_sessions_are_reaped_and_heartbeats_keep_them(tmp_path) -> None:
    async def story(server, http) -> None:
        path, lease = await opened(http, idle_timeout_s=0.3)
        for _ in range(6):
            await asyncio.sleep(0.1)
            assert (await http.post(f"{path}/heartbeat", json={"lease": lease})).status_code == 204
        assert await free(server) < 1.5
        view = (await http.get(path)).json()
        assert view["state"] == "closed"
        assert "0.3 s" in view["problem"]["detail"]
        problem(await http.post(f"{path}/heartbeat", json={"lease": lease}), 409, "lease_lost")

    serve(tmp_path, story)


def test_a_session_whose_client_vanished_during_a_long_reset_is_reaped_too(tmp_path) -> None:
    async def story(server, http) -> None:
        await http.post("/v1/sessions", json={"task": TASK, "options": {"idle_timeout_s": 0.2}})
        assert await free(server) < 3

    script = serve(tmp_path, story, Script(reset=lambda desktop: asyncio.sleep(60)))
    assert script.started == 2, "an interrupted desktop may still be at work; it is replaced"


def test_an_open_long_poll_is_no_silence(tmp_path) -> None:
    async def story(server, http) -> None:
        created = await http.post("/v1/sessions", json={"task": TASK, "options": {"idle_timeout_s": 0.1}})
        path = f"/v1/sessions/{created.json()['session_id']}"
        assert (await http.get(path, params={"wait_s": 25})).json()["state"] == "ready"

    serve(tmp_path, story, Script(reset=slow()))


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (ProblemError(ProblemCode.EVALUATOR_FAILED, "compare_table: no such sheet"), "no such sheet"),
        (KeyError("sheet"), "KeyError"),
        (float("nan"), "nan"),
        (2.0, "2.0"),
        (None, "TypeError"),
    ],
)
def test_an_evaluator_that_fails_is_a_problem_and_never_a_score(tmp_path, outcome, word: str) -> None:
    async def story(server, http) -> None:
        path, lease = await opened(http)
        for _ in range(2):
            refused = problem(
                await http.post(f"{path}/evaluate", json={"lease": lease}), 502, "evaluator_failed"
            )
            assert word in refused.detail
            assert refused.fault is Fault.ENVIRONMENT
        view = (await http.get(path)).json()
        assert (view["state"], view["score"]) == ("failed", None)
        assert (await server.client.capacity()).free == 1

    calls = []
    serve(tmp_path, story, Script(evaluate=lambda desktop: calls.append(1) or outcome))
    assert len(calls) == 1


def test_a_long_evaluation_is_polled_runs_once_and_keeps_its_score(tmp_path) -> None:
    calls = []

    async def evaluate(desktop) -> float:
        calls.append(1)
        await asyncio.sleep(SLOW)
        return 0.25

    async def story(server, http) -> None:
        path, lease = await opened(http)
        body = {"lease": lease}
        first = await http.post(f"{path}/evaluate", json=body, params={"wait_s": 0.05})
        assert (first.status_code, first.json()["state"]) == (202, "evaluating")
        problem(await http.post(f"{path}/step", json={**body, "seq": 1, "actions": []}), 409, "not_ready")
        replies = await asyncio.gather(*(http.post(f"{path}/evaluate", json=body) for _ in range(3)))
        assert [(r.status_code, r.json()) for r in replies] == 3 * [(200, {"score": 0.25})]
        view = (await http.get(path)).json()
        assert (view["state"], view["score"]) == ("ready", 0.25)
        problem(
            await http.post(f"{path}/step", json={**body, "seq": 1, "actions": []}), 422, "invalid_request"
        )

    serve(tmp_path, story, Script(evaluate=evaluate))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("script", "settings", "code"),
    [
        (Script(reset=slow()), {"start_s": 0.03, "reset_s": 0.03, "setup_s": 0.04}, ProblemCode.RESET_FAILED),
        (Script(execute=slow()), {"step_s": 0.1}, ProblemCode.STEP_TIMEOUT),
        (Script(evaluate=slow(1.0)), {"evaluate_s": 0.1}, ProblemCode.EVALUATOR_TIMEOUT),
    ],
)
def test_what_takes_too_long_fails_with_a_code_of_its_own(tmp_path, script, settings, code) -> None:
    async def story(server, http) -> None:
        async def episode() -> float:
            async with await server.client.open_session(TASK) as session:
                await session.step([Click(x=1, y=1)])
                return await session.evaluate()

        with pytest.raises(ProblemError) as caught:
            await episode()
        assert fault(caught) == (code, Fault.ENVIRONMENT)
        assert "0.1 s" in str(caught.value)
        await free(server)

    serve(tmp_path, story, script, timeouts=limits(**settings))


def test_a_desktop_that_is_lost_fails_its_session_and_is_replaced(tmp_path) -> None:
    gone = ProblemError(ProblemCode.DESKTOP_LOST, "the guest does not answer")
    script = Script(execute=lambda desktop: gone if desktop.number == 1 else None)

    async def story(server, http) -> None:
        async with await server.client.open_session(TASK) as session:
            for _ in range(2):
                with pytest.raises(ProblemError) as caught:
                    await session.step([Click(x=1, y=1)])
                assert fault(caught) == (ProblemCode.DESKTOP_LOST, Fault.ENVIRONMENT)
        async with await server.client.open_session(TASK) as session:
            assert (await session.step([Click(x=1, y=1)])).seq == 1

    assert serve(tmp_path, story, script).started == 2


def test_an_action_that_the_desktop_refuses_was_not_applied_and_the_session_goes_on(tmp_path) -> None:
    off_screen = ProblemError(ProblemCode.INVALID_ACTION, "(9, 9) is not on the screen")
    answers = [off_screen, None]
    script = Script(execute=lambda desktop: answers.pop(0))

    async def story(server, http) -> None:
        async with await server.client.open_session(TASK) as session:
            with pytest.raises(ProblemError) as caught:
                await session.step([Click(x=9, y=9)])
            assert fault(caught) == (ProblemCode.INVALID_ACTION, Fault.CLIENT)
            assert (await session.step([Click(x=1, y=1)])).seq == 1

    serve(tmp_path, story, script)


def test_a_desktop_whose_resets_fail_is_quarantined_visibly_and_comes_back(tmp_path) -> None:
    script = Script(
        reset=lambda desktop: (
            ProblemError(ProblemCode.RESET_FAILED, "no calc") if desktop.number == 1 else None
        )
    )

    async def story(server, http) -> None:
        for _ in range(2):
            with pytest.raises(ProblemError) as caught:
                await server.client.open_session(TASK)
            assert fault(caught) == (ProblemCode.RESET_FAILED, Fault.ENVIRONMENT)
        assert "no calc" in problem(await http.get("/readyz"), 503, "start_failed").detail
        async with await server.client.open_session(TASK) as session:
            assert session.seq == 0

    assert serve(tmp_path, story, script).started == 2


def test_a_task_that_the_desktop_refuses_is_not_held_against_it(tmp_path) -> None:
    script = Script(reset=lambda desktop: ProblemError(ProblemCode.INVALID_TASK, "no such file in the suite"))

    async def story(server, http) -> None:
        for _ in range(3):
            with pytest.raises(ProblemError) as caught:
                await server.client.open_session(TASK)
            assert fault(caught) == (ProblemCode.INVALID_TASK, Fault.CLIENT)

    assert serve(tmp_path, story, script).started == 1


def test_a_released_session_stops_what_runs_and_tells_those_who_wait(tmp_path) -> None:
    async def story(server, http) -> None:
        path, lease = await opened(http)
        step = asyncio.create_task(
            http.post(f"{path}/step", json={"lease": lease, "seq": 1, "actions": [CLICK]})
        )
        await asyncio.sleep(0.1)
        assert (await http.delete(path, params={"lease": lease + 1})).status_code == 409
        assert (await http.delete(path, params={"lease": lease})).status_code == 204
        problem(await step, 409, "lease_lost")
        await free(server)

    script = serve(tmp_path, story, Script(execute=lambda desktop: asyncio.sleep(60)))
    assert (script.started, script.executed) == (2, [])


def test_terminal_actions_end_the_episode(tmp_path) -> None:
    async def story(server, http) -> None:
        for last in (Finished(), Fail(reason="no")):
            async with await server.client.open_session(TASK) as session:
                assert not (await session.step([Click(x=1, y=1)])).done
                assert (await session.step([Click(x=1, y=1), last])).done

    serve(tmp_path, story)


def test_leaving_the_server_lets_a_running_step_end_and_fails_what_takes_longer(tmp_path) -> None:
    script = Script(
        execute=lambda desktop: asyncio.sleep(SLOW if desktop.number == 1 else 60),
        reset=lambda desktop: asyncio.sleep(60 if desktop.number == 3 else 0),
    )

    async def story(server, http) -> None:
        client = server.client
        await free(server, 3)
        sessions = [await client.open_session(TASK) for _ in range(2)]
        running = [asyncio.create_task(session.step([Click(x=1, y=1)])) for session in sessions]
        running.append(asyncio.create_task(client.open_session(TASK)))
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(server.server.manager.drain(2 * SLOW))
        await asyncio.sleep(0)
        assert "shutting down" in problem(await http.get("/readyz"), 503, "capacity").detail
        problem(await http.post("/v1/sessions", json={"task": TASK}), 503, "capacity")
        short, long, opening = await asyncio.gather(*running, return_exceptions=True)
        await draining
        assert short.seq == 1
        for interrupted in (long, opening):
            assert interrupted.code is ProblemCode.BACKEND_LOST
            assert interrupted.fault is Fault.ENVIRONMENT
        with pytest.raises(ProblemError) as caught:
            await sessions[0].step([Click(x=1, y=1)])
        assert fault(caught) == (ProblemCode.BACKEND_LOST, Fault.ENVIRONMENT)

    assert serve(tmp_path, story, script, capacity=3).started == 3


def test_pictures_are_scaled_down_on_request(tmp_path) -> None:
    async def story(server, http) -> None:
        options = SessionOptions.model_validate({"screenshot": {"max_width": 80}})
        async with await server.client.open_session(TASK, options) as session:
            screenshot = (await session.step([Click(x=1, y=1)])).observation.screenshot
            assert (screenshot.width, screenshot.height) == (80, 60)
            with Image.open(io.BytesIO(screenshot.data)) as scaled:
                assert scaled.size == (80, 60)
            assert hashlib.sha256(screenshot.data).hexdigest() == screenshot.sha256

    serve(tmp_path, story)


def test_a_desktop_that_shows_no_picture_failed_its_reset(tmp_path) -> None:
    async def story(server, http) -> None:
        with pytest.raises(ProblemError, match="no PNG") as caught:
            await server.client.open_session(TASK)
        assert fault(caught) == (ProblemCode.RESET_FAILED, Fault.ENVIRONMENT)

    script = Script()
    script.screen = lambda number: b"<html>"
    serve(tmp_path, story, script)
