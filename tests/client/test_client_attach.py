"""A session that is taken up again by another client object, as after a restart of the trainer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from fault_proxy import NetFault, fault_proxy
from scripted_desktop import TASK, TOKEN, Script, env_server, picture

from arpo.client import ClientTimeouts, EnvClient, Session
from arpo.protocol.actions import Click
from arpo.protocol.messages import SessionOptions
from arpo.protocol.problems import ProblemCode, ProblemError

ONE, TWO, THREE = ([Click(x=0, y=y)] for y in (1, 2, 3))


@asynccontextmanager
async def killed_client(server, *faults: NetFault):
    """A client that opens a session, does step 1 and dies in step 2, which meets a fault."""
    async with fault_proxy(server.url, delay_s=0.5) as proxy:
        client = EnvClient(proxy.url, TOKEN, timeouts=ClientTimeouts(outage_s=30))
        await client._transport.__aenter__()
        session = await client.open_session(TASK)
        await session.step(ONE)
        proxy.queue.extend(faults)
        stepping = asyncio.create_task(session.step(TWO))
        while len(proxy.faults) == 0 and faults:
            await asyncio.sleep(0.01)
        # What a killed process does: no release, no heartbeat, no retry.
        stepping.cancel()
        session._heartbeat.cancel()
        await proxy.refuse()
        yield session


def with_dead_client(folder, *faults: NetFault, story) -> Script:
    script = Script()

    async def main() -> None:
        async with (
            env_server(folder, script) as server,
            killed_client(server, *faults) as dead,
        ):
            await story(server, dead)

    asyncio.run(main())
    return script


@pytest.mark.parametrize("fault", [NetFault.LOSE_REPLY, NetFault.LOSE_REQUEST, NetFault.LATE_REQUEST])
def test_a_step_of_unknown_fate_is_performed_once_when_it_is_sent_again_with_its_seq(tmp_path, fault) -> None:
    async def story(server, dead: Session) -> None:
        async with await server.client.attach(dead.id, dead.lease) as session:
            reply = await session.step(TWO, seq=2)
            assert (reply.seq, session.seq) == (2, 2)
            await asyncio.sleep(0.6)  # the late request has arrived, too
            assert session.observation.screenshot.data == picture(2)
            assert (await session.step(THREE)).seq == 3
            assert await session.evaluate() == 1.0
        assert (await server.client.wait_ready(5)).capacity == 1

    assert with_dead_client(tmp_path, fault, story=story).executed == [ONE, TWO, THREE]


def test_an_attached_session_stands_at_the_seq_and_shows_the_screen_of_the_server(tmp_path) -> None:
    async def story(server, dead: Session) -> None:
        session = await server.client.attach(dead.id, dead.lease)
        assert session.seq == 2
        assert session.observation.screenshot.data == picture(2)
        with pytest.raises(ProblemError) as caught:
            await session.step(THREE, seq=7)
        assert caught.value.code is ProblemCode.SEQ_CONFLICT
        assert (await session.step(THREE)).seq == 3

    assert with_dead_client(tmp_path, NetFault.LOSE_REPLY, story=story).executed == [ONE, TWO, THREE]


def test_attaching_waits_for_a_step_that_is_running(tmp_path) -> None:
    async def main() -> None:
        script = Script(execute=lambda desktop: asyncio.sleep(0.5))
        async with (
            env_server(tmp_path, script) as server,
            EnvClient(server.url, TOKEN) as other,
            await server.client.open_session(TASK) as first,
        ):
            running = asyncio.create_task(first.step(ONE))
            await asyncio.sleep(0.2)
            assert (await other.attach(first.id, first.lease)).seq == 1
            await running

    asyncio.run(main())


def test_an_attached_session_is_kept_from_falling_silent(tmp_path) -> None:
    async def main() -> None:
        async with env_server(tmp_path) as server, EnvClient(server.url, TOKEN) as other:
            first = await server.client.open_session(TASK, SessionOptions(idle_timeout_s=0.3))
            first._heartbeat.cancel()
            async with await other.attach(first.id, first.lease, idle_timeout_s=0.3) as session:
                await asyncio.sleep(1.0)
                assert (await session.step(ONE)).seq == 1

    asyncio.run(main())


def test_attaching_to_what_is_over_or_leased_otherwise_is_refused_and_changes_nothing(tmp_path) -> None:
    async def main() -> None:
        async with env_server(tmp_path) as server, EnvClient(server.url, TOKEN) as other:
            async with await server.client.open_session(TASK) as session:
                with pytest.raises(ProblemError) as caught:
                    await other.attach(session.id, session.lease + 1)
                assert caught.value.code is ProblemCode.LEASE_LOST
                assert (await session.step(ONE)).seq == 1
            with pytest.raises(ProblemError) as caught:
                await other.attach(session.id, session.lease)
            assert caught.value.code is ProblemCode.LEASE_LOST
            with pytest.raises(ProblemError) as caught:
                await other.attach("nonsense", 1)
            assert caught.value.code is ProblemCode.NOT_FOUND

    asyncio.run(main())
