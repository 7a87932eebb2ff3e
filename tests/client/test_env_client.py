from __future__ import annotations

import asyncio
import socket
import time
from collections import deque

import httpx
import pytest
from fault_proxy import NetFault, fault_proxy
from scripted_desktop import TASK, TOKEN, Script, env_server

import arpo.client
from arpo.client import Backoff, BreakerRules, ClientTimeouts, EnvClient, Session
from arpo.protocol.actions import Click, Finished, Wait
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import ConfigError, Fault, ProblemCode, ProblemError

CLICK = Click(x=1, y=2)
HASTY = ClientTimeouts(connect_s=1, read_s=1, capacity_s=0.5, close_s=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def with_server(folder, story, script: Script | None = None, **settings) -> Script:
    script = script or Script()

    async def main() -> None:
        async with env_server(folder, script, **settings) as server:
            await server.client.wait_ready(5)
            await story(server)

    asyncio.run(main())
    assert script.started == script.closed
    return script


async def free(server, timeout_s: float = 5.0, desktops: int = 1) -> None:
    async with asyncio.timeout(timeout_s):
        while (await server.client.capacity()).free < desktops:
            await asyncio.sleep(0.01)


def lost(caught) -> None:
    assert (caught.value.code, caught.value.fault) == (ProblemCode.BACKEND_LOST, Fault.ENVIRONMENT)


def test_an_episode_from_open_to_score(tmp_path) -> None:
    async def story(server) -> None:
        async with await server.client.open_session(TASK) as session:
            before = session.observation.screenshot.sha256
            reply = await session.step([CLICK])
            assert (reply.seq, session.seq, reply.done) == (1, 1, False)
            assert session.observation == reply.observation
            assert reply.observation.screenshot.sha256 != before
            assert (await session.step([CLICK, Finished(content="done")])).done
            assert await session.evaluate() == await session.evaluate() == 1.0
        assert (await server.client.capacity()).free == 1

    with_server(tmp_path, story)


def test_a_lost_reply_never_clicks_twice(tmp_path) -> None:
    async def story(server) -> None:
        async with fault_proxy(server.url) as proxy, EnvClient(proxy.url, TOKEN) as client:
            async with await client.open_session(TASK) as session:
                for lost_replies in (0, 1, 3):
                    proxy.queue.extend(lost_replies * [NetFault.LOSE_REPLY])
                    await session.step([CLICK])
                proxy.queue.extend(2 * [NetFault.LOSE_REPLY])
                assert await session.evaluate() == 1.0
                proxy.queue.append(NetFault.LOSE_REPLY)
            await free(server)

    script = with_server(tmp_path, story)
    assert script.executed == 3 * [[CLICK]]


@pytest.mark.parametrize("fault", [NetFault.LOSE_REPLY, NetFault.RESET_AFTER, NetFault.LATE_REQUEST])
def test_a_creation_without_a_reply_makes_one_session(tmp_path, fault: NetFault) -> None:
    async def story(server) -> None:
        async with fault_proxy(server.url) as proxy, EnvClient(proxy.url, TOKEN) as client:
            proxy.queue.extend(2 * [fault])
            async with await client.open_session(TASK):
                assert (await server.client.capacity()).free == 2
                await asyncio.sleep(2 * proxy.delay_s)
                assert (await server.client.capacity()).free == 2
        await free(server, desktops=3)

    assert with_server(tmp_path, story, capacity=3).resets == ["t"]


def test_a_creation_that_never_gets_a_reply_leaves_no_session(tmp_path) -> None:
    async def story(server) -> None:
        async with fault_proxy(server.url) as proxy, EnvClient(proxy.url, TOKEN) as client:
            proxy.queue.extend(4 * [NetFault.LOSE_REPLY])
            with pytest.raises(ProblemError) as caught:
                await client.open_session(TASK)
            lost(caught)
            await free(server)

    assert with_server(tmp_path, story).resets == ["t"]


def test_a_creation_that_arrives_after_it_was_given_up_leaves_no_session(tmp_path) -> None:
    async def story(server) -> None:
        hasty = ClientTimeouts(capacity_s=0)
        async with (
            fault_proxy(server.url, delay_s=0.5) as proxy,
            EnvClient(proxy.url, TOKEN, timeouts=hasty) as client,
        ):
            async with await server.client.open_session(TASK):
                proxy.queue.append(NetFault.LATE_REQUEST)
                with pytest.raises(ProblemError) as caught:
                    await client.open_session(TASK)
                assert caught.value.code is ProblemCode.CAPACITY
            await asyncio.sleep(0.6)
            await free(server)

    with_server(tmp_path, story)


def test_a_connection_that_was_never_made_is_tried_again_even_to_create(tmp_path) -> None:
    port = free_port()

    async def main() -> None:
        patient = {"backoff": Backoff(attempts=30), "breaker": BreakerRules(failures=30)}
        async with EnvClient(f"http://127.0.0.1:{port}", TOKEN, **patient) as client:
            opening = asyncio.create_task(client.open_session(TASK))
            await asyncio.sleep(0.3)
            async with env_server(tmp_path, port=port), await opening as session:
                assert session.seq == 0

    asyncio.run(main())


def test_a_server_that_is_gone_is_noticed_within_seconds() -> None:
    async def main() -> None:
        async with EnvClient(f"http://127.0.0.1:{free_port()}", TOKEN) as client:
            begun = time.monotonic()
            with pytest.raises(ProblemError) as caught:
                await client.open_session(TASK)
            lost(caught)
            assert time.monotonic() - begun < 3
            ready, reason = await client.ready()
            assert not ready
            assert str(client.url) in reason
            with pytest.raises(ProblemError, match=r"not ready after 0\.3 s"):
                await client.wait_ready(0.3)

    asyncio.run(main())


def test_a_server_that_hangs_is_noticed_by_the_read_time_out() -> None:
    async def main() -> None:
        silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        impatient = ClientTimeouts(read_s=0.1)
        async with EnvClient(f"http://127.0.0.1:{port}", TOKEN, timeouts=impatient) as client:
            with pytest.raises(ProblemError) as caught:
                await client.capacity()
            lost(caught)
        silent.close()

    asyncio.run(main())


def test_more_episodes_than_desktops_take_turns(tmp_path) -> None:
    async def story(server) -> None:
        async def episode() -> float:
            async with await server.client.open_session(TASK) as session:
                await session.step([CLICK])
                return await session.evaluate()

        assert await asyncio.gather(*(episode() for _ in range(5))) == 5 * [1.0]

    assert len(with_server(tmp_path, story, capacity=2).resets) == 5


def test_no_free_desktop_in_time_is_a_capacity_problem(tmp_path) -> None:
    async def story(server) -> None:
        async with (
            await server.client.open_session(TASK),
            EnvClient(server.url, TOKEN, timeouts=HASTY) as other,
        ):
            with pytest.raises(ProblemError) as caught:
                await other.open_session(TASK)
            assert (caught.value.code, caught.value.fault) == (ProblemCode.CAPACITY, Fault.ENVIRONMENT)

    with_server(tmp_path, story)


def test_a_caller_that_thinks_longer_than_the_idle_time_out_keeps_its_session(tmp_path) -> None:
    async def story(server) -> None:
        async with await server.client.open_session(TASK, SessionOptions(idle_timeout_s=0.3)) as session:
            await asyncio.sleep(1.2)
            assert (await session.step([CLICK])).seq == 1
            await asyncio.sleep(0.6)
            assert await session.evaluate() == 1.0

    with_server(tmp_path, story)


def test_cancelling_releases_the_session_wherever_it_happens(tmp_path) -> None:
    async def hold(client: EnvClient, script: Script, busy: asyncio.Event) -> None:
        async with await client.open_session(TASK) as session:
            busy.set()
            await session.step([CLICK])
            await asyncio.sleep(60)

    async def story(server) -> None:
        async with fault_proxy(server.url, delay_s=0.3) as proxy, EnvClient(proxy.url, TOKEN) as client:
            # While thinking, in a step, in the reset, and while the reply to the creation is on its way.
            for place in ("thinking", "step", "reset", "creation"):
                busy = asyncio.Event()
                server.script.execute = lambda d, place=place: asyncio.sleep(60 if place == "step" else 0)
                server.script.reset = lambda d, place=place: asyncio.sleep(60 if place == "reset" else 0)
                proxy.queue = deque([NetFault.DELAY] if place == "creation" else [])
                task = asyncio.create_task(hold(client, server.script, busy))
                if place in ("thinking", "step"):
                    await busy.wait()
                await asyncio.sleep(0.15)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await free(server, timeout_s=3)

    with_server(tmp_path, story)


def test_leaving_the_client_releases_what_was_left_open(tmp_path) -> None:
    async def story(server) -> None:
        async with EnvClient(server.url, TOKEN) as client:
            session = await client.open_session(TASK)
        assert (await server.client.capacity()).free == 1
        await session.close()

    with_server(tmp_path, story)


def test_after_a_step_of_unknown_outcome_only_the_same_step_is_safe(tmp_path) -> None:
    async def story(server) -> None:
        async with (
            fault_proxy(server.url) as proxy,
            EnvClient(proxy.url, TOKEN, timeouts=ClientTimeouts(outage_s=0.3)) as client,
            await client.open_session(TASK) as session,
        ):
            proxy.choose = lambda request: NetFault.LOSE_REPLY
            with pytest.raises(ProblemError) as caught:
                await session.step([CLICK])
            lost(caught)
            proxy.choose = lambda request: None
            for other in (session.step([Click(x=9, y=9)]), session.evaluate()):
                with pytest.raises(ProblemError) as caught:
                    await other
                assert caught.value.code is ProblemCode.SEQ_CONFLICT
            assert (await session.step([CLICK])).seq == 1
            assert (await session.step([Click(x=9, y=9)])).seq == 2

    assert len(with_server(tmp_path, story).executed) == 2


def test_a_session_of_an_earlier_life_of_the_server_is_an_environment_fault(tmp_path) -> None:
    port = free_port()

    async def main() -> None:
        async with EnvClient(f"http://127.0.0.1:{port}", TOKEN) as client:
            async with env_server(tmp_path, port=port):
                await client.wait_ready(5)
                old = await client.open_session(TASK)
            async with env_server(tmp_path, port=port):
                await client.wait_ready(5)
                with pytest.raises(ProblemError, match="restarted") as caught:
                    await old.step([CLICK])
                lost(caught)
                await old.close()
                async with await client.open_session(TASK) as session:
                    assert (await session.step([CLICK])).seq == 1

    asyncio.run(main())


def test_a_wrong_token_is_told_at_once(tmp_path) -> None:
    async def story(server) -> None:
        async with EnvClient(server.url, "wrong") as client:
            begun = time.monotonic()
            for call in (client.capacity(), client.wait_ready(30), client.open_session(TASK)):
                with pytest.raises(ProblemError) as caught:
                    await call
                assert (caught.value.code, caught.value.fault) == (ProblemCode.UNAUTHORIZED, Fault.CLIENT)
                assert "wrong" not in str(caught.value)
            assert time.monotonic() - begun < 3

    with_server(tmp_path, story)


def test_waiting_for_a_server_tells_what_it_waits_for(tmp_path) -> None:
    async def main() -> None:
        told: list[str] = []
        async with env_server(tmp_path, Script(start=lambda count: asyncio.sleep(0.4))) as server:
            capacity = await server.client.wait_ready(5, on_progress=told.append)
            assert capacity.free == 1
        assert len(told) == 1
        assert "1 starting" in told[0]

    asyncio.run(main())


def test_a_full_server_counts_as_ready_because_its_desktops_work(tmp_path) -> None:
    async def story(server) -> None:
        async with await server.client.open_session(TASK):
            assert (await server.client.ready())[0] is False
            assert (await server.client.wait_ready(1)).busy == 1

    with_server(tmp_path, story)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>nginx</html>"),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(200, json={"unexpected": 1}),
        httpx.Response(307, headers={"location": "http://elsewhere/"}),
        httpx.Response(500, headers={"content-type": "application/problem+json"}, text="{"),
        httpx.Response(200, content=b"\xff", headers={"content-encoding": "gzip"}),
    ],
)
def test_an_answer_that_no_env_server_gives_is_backend_lost(answer: httpx.Response) -> None:
    async def main() -> None:
        http = httpx.MockTransport(lambda request: answer)
        hurried = {"backoff": Backoff(first_s=0.001), "timeouts": ClientTimeouts(close_s=0.1)}
        async with EnvClient("http://server", TOKEN, http=http, **hurried) as client:
            for call in (client.capacity(), client.open_session(TASK)):
                with pytest.raises(ProblemError) as caught:
                    await call
                lost(caught)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "token"),
    [("", "t"), ("127.0.0.1:18082", "t"), ("ftp://x", "t"), ("http://x", ""), ("http://x", "t\n")],
)
def test_a_url_or_token_that_cannot_work_is_refused_with_the_fix(url: str, token: str) -> None:
    with pytest.raises(ConfigError, match="fix:"):
        EnvClient(url, token)


def test_more_actions_than_a_step_may_have_are_a_typed_refusal(tmp_path) -> None:
    async def story(server) -> None:
        async with await server.client.open_session(TASK) as session:
            with pytest.raises(ProblemError) as caught:
                await session.step(65 * [CLICK])
            assert caught.value.code is ProblemCode.INVALID_ACTION
            assert (await session.step([Wait(seconds=0)])).seq == 1

    with_server(tmp_path, story)


def test_proxies_of_the_environment_are_not_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with_server(tmp_path, lambda server: server.client.capacity())


def test_pauses_grow_are_bounded_and_differ() -> None:
    backoff = Backoff(first_s=0.2, longest_s=5.0)
    assert all(0.1 <= backoff.pause_s(0) <= 0.2 for _ in range(50))
    assert all(2.5 <= backoff.pause_s(1000) <= 5.0 for _ in range(50))
    assert len({backoff.pause_s(3) for _ in range(10)}) > 1


def test_the_public_surface_is_small() -> None:
    assert set(arpo.client.__all__) == {"Backoff", "BreakerRules", "ClientTimeouts", "EnvClient", "Session"}
    assert arpo.client.Session is Session
