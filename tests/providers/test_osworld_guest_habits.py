"""What OSWorld's own guest server does otherwise than ours, on a stand-in with its habits."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from osworld_guest import Guest

from arpo.guest_client import GuestError, GuestFileMissing, Settle
from arpo.guest_client.osworld import OsworldGuestClient
from arpo.protocol.actions import Action, Hotkey, Press, Scroll, Type, Wait

T = TypeVar("T")
QUICK = Settle(quiet_s=0.1, ceiling_s=1.0)
Do = Callable[[Callable[[OsworldGuestClient], Awaitable[T]]], T]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def do(disk: Path) -> Iterator[Do]:
    """Runs a call with a client of the guest."""
    guest = Guest(("127.0.0.1", 0), disk, (320, 200))
    threading.Thread(target=guest.serve_forever, daemon=True).start()

    async def with_client(call: Callable[[OsworldGuestClient], Awaitable[T]]) -> T:
        client = OsworldGuestClient(f"http://127.0.0.1:{guest.server_address[1]}")
        try:
            return await call(client)
        finally:
            await client.close()

    yield lambda call: asyncio.run(with_client(call))
    guest.shutdown()
    guest.server_close()


def events(disk: Path) -> list[list[object]]:
    return [json.loads(line) for line in (disk / "events.jsonl").read_text().splitlines()]


def test_folders_are_made_for_a_file_though_the_server_makes_none(do: Do, disk: Path) -> None:
    target = disk / "new" / "folder" / "a.bin"
    do(lambda client: client.write_file(str(target), b"\0\xff"))
    assert target.read_bytes() == b"\0\xff"
    with pytest.raises(GuestError):
        do(lambda client: client.write_file("/proc/no/such", b""))
    with pytest.raises(GuestFileMissing):
        do(lambda client: client.read_file(str(disk / "nothing")))


def test_whether_there_is_a_window_is_asked_of_wmctrl_not_of_the_route_that_always_agrees(
    do: Do, disk: Path
) -> None:
    wmctrl = disk / ".lib" / "wmctrl"
    wmctrl.write_text(f'#!/bin/sh\necho "$@" >> {disk}/asked\nfor last; do :; done\n[ "$last" = Editor ]\n')
    wmctrl.chmod(0o755)
    assert do(lambda client: client.activate_window("Editor"))
    assert not do(lambda client: client.activate_window("Nothing", strict=True))
    assert do(lambda client: client.close_window("Editor", by_class=True))
    assert (disk / "asked").read_text().splitlines() == ["-a Editor", "-F -a Nothing", "-x -c Editor"]


def test_a_step_is_one_call_and_pyautogui_gets_what_it_can_do(do: Do, disk: Path) -> None:
    actions: list[Action] = [
        Type(text="a<b\r\n\x07c"),
        Hotkey(keys=("ctrl", "C")),
        Press(key="super"),
        Press(key="<"),
        Wait(seconds=0.01),
        Scroll(x=1, y=2, direction="left", amount=3),
    ]
    do(lambda client: client.act(actions, QUICK))
    assert events(disk) == [
        ["write", "a"], ["hotkey", "shift", ","], ["write", "b\nc"],
        ["hotkey", "ctrl", "c"], ["hotkey", "win"], ["hotkey", "shift", ","],
        ["moveTo", 1, 2], ["hscroll", -3],
    ]  # fmt: skip


def test_the_longest_text_arrives_whole(do: Do, disk: Path) -> None:
    text = "".join(chr(33 + n % 27) for n in range(20_000))  # no "<"
    do(lambda client: client.act([Type(text=text)], QUICK))
    assert (disk / "typed.txt").read_text() == text


def test_a_key_that_pyautogui_does_not_know_is_an_error_not_nothing(do: Do) -> None:
    with pytest.raises(GuestError, match=r"no key 'f24'"):
        do(lambda client: client.act([Press(key="f24")], QUICK))


def test_a_guest_without_pyautogui_is_the_guests_error(do: Do, disk: Path) -> None:
    (disk / ".lib" / "pyautogui.py").write_text("raise KeyError('DISPLAY')")
    with pytest.raises(GuestError, match="could not perform the actions: KeyError: 'DISPLAY'"):
        do(lambda client: client.act([Press(key="a")], QUICK))


def test_a_guest_that_is_not_there_is_said_so() -> None:
    async def story() -> None:
        client = OsworldGuestClient("http://127.0.0.1:9")
        with pytest.raises(GuestError, match="does not answer"):
            await client.health()
        await client.close()

    asyncio.run(story())
