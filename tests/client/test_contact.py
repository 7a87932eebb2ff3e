"""Contact with the env-server: lost and regained once each, and time that stands still in between."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_proxy import fault_proxy
from scripted_desktop import TASK, TOKEN, Script, env_server

from arpo.client import Backoff, ClientTimeouts, EnvClient
from arpo.client.contact import Contact
from arpo.protocol.actions import Click


def test_watchers_are_told_of_every_change_once() -> None:
    contact, told = Contact(), []
    with contact.watched(told.append):
        contact.lose("a")
        contact.lose("b")
        contact.regain()
        contact.regain()
    contact.lose("c")
    assert told == [True, False]
    with contact.watched(told.append):
        assert told == [True, False, True]
    assert contact.reason == "c"


def test_a_time_out_stands_still_while_there_is_no_contact() -> None:
    async def main() -> None:
        contact = Contact()
        begun = time.monotonic()

        async def limited() -> None:
            async with contact.timeout(0.3):
                await asyncio.sleep(0.1)
                contact.lose("gone")
                await asyncio.sleep(0.6)
                contact.regain()
                await asyncio.sleep(5)

        with pytest.raises(TimeoutError):
            await limited()
        assert 0.85 < time.monotonic() - begun < 3
        contact.lose("gone")
        async with contact.timeout(0.05):
            await asyncio.sleep(0.2)
            contact.regain()
        async with contact.timeout(None):
            await asyncio.sleep(0)

    asyncio.run(main())


def test_only_a_long_silence_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    contact = Contact()
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    contact.lose("a")
    assert contact.outage_since(100.0)
    now = 105.0
    contact.regain()
    assert not contact.outage_since(90.0)
    contact.lose("b")
    now = 120.0
    contact.regain()
    assert contact.outage_since(90.0)
    assert not contact.outage_since(121.0)


def test_a_step_outlives_its_own_limit_when_the_server_was_away(tmp_path) -> None:
    async def main() -> None:
        script = Script()
        timeouts = ClientTimeouts(
            connect_s=1, read_s=1, poll_s=0.3, outage_s=float("inf"), step_s=1.5, close_s=2
        )
        async with (
            env_server(tmp_path, script, capacity=1) as server,
            fault_proxy(server.url) as proxy,
            EnvClient(proxy.url, TOKEN, timeouts=timeouts, backoff=Backoff(longest_s=0.5)) as client,
            await client.open_session(TASK) as session,
        ):
            await proxy.refuse()
            step = asyncio.create_task(session.step([Click(x=1, y=1)]))
            await asyncio.sleep(4)
            assert not step.done()
            await proxy.listen()
            assert (await step).seq == 1
        assert len(script.executed) == 1

    asyncio.run(main())
