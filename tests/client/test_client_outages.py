"""What sessions and creations do while the server cannot be reached."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from fault_proxy import FaultProxy, NetFault, fault_proxy
from scripted_desktop import TASK, TOKEN, Script, env_server

from arpo.client import Backoff, BreakerRules, ClientTimeouts, EnvClient
from arpo.protocol.actions import Click, Wait
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import Fault, ProblemCode, ProblemError

HURRIED = ClientTimeouts(connect_s=1, read_s=0.5, poll_s=0.5, outage_s=10, close_s=2)
RULES = BreakerRules(failures=3, first_s=0.05, longest_s=0.2)
BACKOFF = Backoff(first_s=0.02, longest_s=0.2)


@asynccontextmanager
async def behind_proxy(folder, script: Script | None = None, timeouts=HURRIED, **settings):
    async with (
        env_server(folder, script, **settings) as server,
        fault_proxy(server.url) as proxy,
        EnvClient(proxy.url, TOKEN, timeouts=timeouts, breaker=RULES, backoff=BACKOFF) as client,
    ):
        await server.client.wait_ready(10)
        yield server, proxy, client


async def refuse(proxy: FaultProxy) -> None:
    await proxy.refuse()


async def swallow(proxy: FaultProxy) -> None:
    proxy.choose = lambda request: NetFault.SWALLOW


async def bad_gateway(proxy: FaultProxy) -> None:
    proxy.choose = lambda request: NetFault.BAD_GATEWAY


async def lose_replies(proxy: FaultProxy) -> None:
    proxy.choose = lambda request: NetFault.RESET_AFTER


async def heal(proxy: FaultProxy) -> None:
    proxy.choose = lambda request: None
    await proxy.refuse()
    await proxy.listen()


OUTAGES = pytest.mark.parametrize("outage", [refuse, swallow, bad_gateway, lose_replies])


@OUTAGES
def test_a_session_rides_out_an_outage_and_goes_on_at_the_same_seq(tmp_path, outage) -> None:
    async def main() -> None:
        script = Script()
        async with (
            behind_proxy(tmp_path, script) as (_, proxy, client),
            await client.open_session(TASK) as session,
        ):
            await session.step([Click(x=0, y=1)])
            await outage(proxy)
            stepping = asyncio.create_task(session.step([Click(x=0, y=2)]))
            await asyncio.sleep(1.2)
            assert not stepping.done()
            await heal(proxy)
            assert (await stepping).seq == 2
            assert (await session.step([Click(x=0, y=3)])).seq == 3
            assert await session.evaluate() == 1.0
        assert [actions[0].y for actions in script.executed] == [1, 2, 3]

    asyncio.run(main())


@OUTAGES
def test_an_outage_that_lasts_is_backend_lost_and_creations_fail_at_once(tmp_path, outage) -> None:
    async def main() -> None:
        short = ClientTimeouts(connect_s=1, read_s=0.3, poll_s=0.2, outage_s=0.6, close_s=0.5)
        async with behind_proxy(tmp_path, timeouts=short) as (server, proxy, client):
            session = await client.open_session(TASK, SessionOptions(idle_timeout_s=5))
            await outage(proxy)
            with pytest.raises(ProblemError) as caught:
                await session.step([Click(x=0, y=1)])
            assert (caught.value.code, caught.value.fault) == (ProblemCode.BACKEND_LOST, Fault.ENVIRONMENT)
            # Long enough for the circuit to have opened; what asks now is told so without any connection.
            with pytest.raises(ProblemError) as caught:
                await asyncio.gather(*(client.open_session(TASK) for _ in range(20)))
            assert caught.value.code is ProblemCode.BACKEND_LOST
            assert caught.value.problem.retry_after_s is not None
            await heal(proxy)
            assert (await client.wait_ready(10)).capacity == 1
            await session.close()
            assert (await server.client.wait_ready(10)).capacity == 1

    asyncio.run(main())


def test_many_sessions_leave_a_dead_server_alone_but_for_one_probe_at_a_time(tmp_path) -> None:
    sessions = 50

    async def main() -> None:
        async with behind_proxy(tmp_path, capacity=sessions) as (_, proxy, client):
            # One after another: on a busy machine fifty at once would be a trouble of their own.
            opened = [await client.open_session(TASK) for _ in range(sessions)]
            await proxy.refuse()
            # Counts what is tried: a port that refuses, but answers for the tries.
            before = proxy.connections
            proxy.choose = lambda request: NetFault.RESET_BEFORE
            await proxy.listen()
            stepping = [asyncio.create_task(session.step([Click(x=0, y=1)])) for session in opened]
            await asyncio.sleep(2.0)
            tried = proxy.connections - before
            # Each session once, before anybody knew, and a probe every 0.05 to 0.2 s.
            assert 3 <= tried <= sessions + 2.0 / RULES.first_s
            assert proxy.requests["GET /healthz"] > 3
            assert tried - proxy.requests["GET /healthz"] <= sessions + 5
            await heal(proxy)
            assert {reply.seq for reply in await asyncio.gather(*stepping)} == {1}

    asyncio.run(main())


def test_one_session_in_trouble_does_not_keep_the_others_from_their_server(tmp_path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path, capacity=2) as (_, proxy, client):
            unlucky, lucky = await client.open_session(TASK), await client.open_session(TASK)
            proxy.choose = lambda request: NetFault.SWALLOW if unlucky.id in request.path else None
            stepping = asyncio.create_task(unlucky.step([Click(x=0, y=1)]))
            for _ in range(10):
                await lucky.step([Click(x=0, y=1)])
                await asyncio.sleep(0.05)
            proxy.choose = lambda request: None
            assert (await stepping).seq == 1

    asyncio.run(main())


def test_a_dead_server_is_probed_by_a_call_that_comes_after_the_pause(tmp_path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, client):
            await proxy.refuse()
            for _ in range(3):
                with pytest.raises(ProblemError):
                    await client.capacity()
            await heal(proxy)
            await asyncio.sleep(2 * RULES.longest_s)
            assert (await client.capacity()).free == 1

    asyncio.run(main())


def test_no_request_is_silent_for_longer_than_a_poll(tmp_path) -> None:
    async def score() -> float:
        await asyncio.sleep(1.5)
        return 0.5

    async def main() -> None:
        script = Script(execute=lambda desktop: asyncio.sleep(1.5), evaluate=lambda desktop: score())
        patient = ClientTimeouts(read_s=5, poll_s=0.3)
        async with (
            behind_proxy(tmp_path, script, timeouts=patient) as (_, proxy, client),
            await client.open_session(TASK) as session,
        ):
            assert (await session.step([Click(x=0, y=1)])).seq == 1
            assert await session.evaluate() == 0.5
            assert proxy.requests["POST /v1/sessions/{id}/step"] >= 3
            assert proxy.requests["POST /v1/sessions/{id}/evaluate"] >= 3
        assert len(script.executed) == 1

    asyncio.run(main())


def test_operations_have_limits_however_many_requests_they_take(tmp_path) -> None:
    async def main() -> None:
        forever = Script(
            execute=lambda desktop: asyncio.sleep(60), evaluate=lambda desktop: asyncio.sleep(60)
        )
        limits = ClientTimeouts(poll_s=0.1, step_s=0.4, evaluate_s=0.4, reset_s=0.4)
        async with behind_proxy(tmp_path, forever, timeouts=limits, capacity=3) as (_, _, client):
            async with await client.open_session(TASK) as session:
                with pytest.raises(ProblemError) as caught:
                    await session.step([Click(x=0, y=1)])
                assert caught.value.code is ProblemCode.STEP_TIMEOUT
            async with await client.open_session(TASK) as session:
                with pytest.raises(ProblemError) as caught:
                    await session.evaluate()
                assert caught.value.code is ProblemCode.EVALUATOR_TIMEOUT
            forever.reset = lambda desktop: asyncio.sleep(60)
            with pytest.raises(ProblemError) as caught:
                await client.open_session(TASK)
            assert caught.value.code is ProblemCode.RESET_FAILED

    asyncio.run(main())


def test_waiting_that_the_agent_asks_for_is_not_held_against_the_step(tmp_path) -> None:
    async def main() -> None:
        script = Script(execute=lambda desktop: asyncio.sleep(0.8))
        limits = ClientTimeouts(poll_s=0.1, step_s=0.3)
        async with (
            behind_proxy(tmp_path, script, timeouts=limits) as (_, _, client),
            await client.open_session(TASK) as session,
        ):
            assert (await session.step([Wait(seconds=10)])).seq == 1

    asyncio.run(main())
