"""A guest with OSWorld's routes only does what it is told: a real desktop, driven as OSWorld's virtual machines are."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import pytest
from PIL import Image, ImageDraw

from arpo.desktop.guest_desktop import GuestDesktop
from arpo.guest_client import GuestError, GuestFileMissing, Settle
from arpo.guest_client.http import HttpGuestClient
from arpo.guest_client.osworld import OsworldGuestClient, _batches, _differ
from arpo.protocol.actions import (
    Action,
    Click,
    Drag,
    Fail,
    Finished,
    Hotkey,
    KeyDown,
    KeyUp,
    Move,
    Press,
    Scroll,
    Type,
    Wait,
)
from arpo.providers.base import Addresses, Guest
from arpo.tasks.model import Task

HOSTILE = """it's "5" < 6 && '''x''' \\ \\\\n %s {0} | $HOME $(touch ~/pwned) `touch ~/pwned` import os # ~/ /home/user/"""
FOREIGN = "äöüßéñ €£ Привет 日本語 → ✓ 😀 <ä>b"


class OnlyOsworldsRoutes(OsworldGuestClient):
    """Fails when one of our own routes is used, which OSWorld's server lacks."""

    async def _call(self, method, path, **how):
        assert not path.startswith("/arpo/"), path
        return await super()._call(method, path, **how)


@pytest.fixture(scope="module")
def client(desk) -> Iterator[OsworldGuestClient]:
    address = desk.run(desk.provider.expose(desk.guest)).addresses.server
    made = OnlyOsworldsRoutes(f"http://{address}")
    yield made
    desk.run(made.close())


@pytest.fixture
def act(desk, client):
    return lambda *actions: desk.run(client.act(actions, Settle()))


@pytest.fixture
def terminal(desk):
    desk.open_window(["xterm", "-T", "Terminal"], "Terminal")
    yield desk
    desk.close_window("Terminal")
    desk.end("xterm")


EVENT_WINDOW = """
from Xlib import X
from Xlib.display import Display
display = Display()
screen = display.screen()
mask = X.ButtonPressMask | X.ButtonReleaseMask | X.ButtonMotionMask | X.KeyPressMask | X.KeyReleaseMask
window = screen.root.create_window(0, 0, 400, 300, 0, screen.root_depth, background_pixel=0xffffff, event_mask=mask)
window.set_wm_name("Events")
window.map()
log = open("/tmp/events.txt", "w", buffering=1)
while True:
    event = display.next_event()
    if event.type in (X.ButtonPress, X.ButtonRelease):
        log.write(f"{'+-'[event.type == X.ButtonRelease]}{event.detail} {event.root_x},{event.root_y}\\n")
    elif event.type == X.MotionNotify:
        log.write(f"~ {event.root_x},{event.root_y}\\n")
    elif event.type in (X.KeyPress, X.KeyRelease):
        log.write(f"{'+-'[event.type == X.KeyRelease]}{hex(display.keycode_to_keysym(event.detail, 0))}\\n")
"""


@pytest.fixture
def events(desk):
    desk.run(desk.client.write_file("/tmp/events.py", EVENT_WINDOW.encode()))
    desk.open_window(["python3", "/tmp/events.py"], "Events")
    yield lambda: desk.read("/tmp/events.txt").split("\n")[:-1]
    desk.end("/tmp/events.py")


@pytest.mark.xvfb
def test_text_of_any_alphabet_and_hostile_text_arrive_as_they_are(act, terminal) -> None:
    act(Type(text=f"cat > typed.txt <<'END'\n{HOSTILE}\n{FOREIGN}\nEND\n"))
    assert terminal.read("typed.txt") == f"{HOSTILE}\n{FOREIGN}\n"
    assert "pwned" not in terminal.shell("ls")


@pytest.mark.xvfb
def test_hotkeys_and_keys_reach_the_program(act, terminal) -> None:
    act(Type(text="touch wrong"), Hotkey(keys=("ctrl", "u")), Type(text="touch right"), Press(key="enter"))
    act(
        Type(text="sleep 600\n"),
        Hotkey(keys=("ctrl", "C")),
        Type(text="touch int"),
        Press(key="é"),
        Press(key="enter"),
    )
    assert {"right", "inté"} <= set(terminal.shell("ls").split())
    assert "wrong" not in terminal.shell("ls")


@pytest.mark.xvfb
def test_mouse_input_arrives_where_it_should(act, events) -> None:
    act(
        Click(x=100, y=80),
        Click(x=50, y=60, button="right"),
        Click(x=200, y=150, clicks=2),
        Scroll(x=120, y=90, direction="down", amount=3),
        Scroll(x=120, y=90, direction="left", amount=1),
        Drag(x=20, y=30, to_x=220, to_y=130),
    )
    seen = events()
    assert [line for line in seen if line[0] != "~"] == [
        "+1 100,80", "-1 100,80", "+3 50,60", "-3 50,60",
        *["+1 200,150", "-1 200,150"] * 2,
        *["+5 120,90", "-5 120,90"] * 3,
        *["+6 120,90", "-6 120,90"],
        "+1 20,30", "-1 220,130",
    ]  # fmt: skip
    assert len([line for line in seen if line[0] == "~"]) > 3, "the drag jumped"


@pytest.mark.xvfb
def test_a_held_key_stays_down_from_one_call_to_the_next(desk, act, events) -> None:
    act(KeyDown(key="shift"))
    act(Press(key="x"))
    act(KeyUp(key="shift"))
    assert events() == ["+0xffe1", "+0x78", "-0x78", "-0xffe1"]


@pytest.mark.xvfb
def test_windows_files_and_commands(desk, client) -> None:
    assert not desk.run(client.activate_window("no such window"))
    assert not desk.run(client.close_window("no such window"))
    desk.run(client.write_file("/home/user/new/folder/a.txt", b"a\r\n\0"))
    assert desk.run(client.read_file("/home/user/new/folder/a.txt")) == b"a\r\n\0"
    with pytest.raises(GuestFileMissing):
        desk.run(client.read_file("/home/user/nothing"))
    assert desk.run(client.list_directory("/home/user/new"))["children"]
    desk.run(client.write_file("/home/user/new/b.txt", b"text"))
    desk.run(client.open_file("/home/user/new/b.txt"))
    assert desk.run(client.activate_window("b.txt"))
    assert desk.run(client.close_window("b.txt"))
    desk.end("mousepad")


@pytest.mark.xvfb
def test_an_action_that_the_guest_cannot_do_is_the_guests_error(desk, client) -> None:
    desk.run(
        client.execute(
            "mkdir -p bad && printf 'raise ImportError(\"no display\")' > bad/pyautogui.py", shell=True
        )
    )
    broken = client.execute

    async def execute(command, **how):
        return await broken(["env", "PYTHONPATH=bad", *command], **how)

    client.execute = execute
    try:
        with pytest.raises(GuestError, match="no display"):
            desk.run(client.act([Click(x=1, y=1)], Settle()))
    finally:
        del client.execute


@pytest.mark.xvfb
def test_a_task_is_set_up_performed_and_scored_on_it(desk, client) -> None:
    class OneGuest:
        """A provider of the one guest there is."""

        name = "one"

        async def start(self) -> Guest:
            return Guest(id="one", client=client, screen=(1280, 720), addresses=Addresses(server="unused:1"))

        reset = expose = None

        async def stop(self, guest: Guest) -> None:
            pass

    task = Task.model_validate(
        {
            "id": "note",
            "instruction": "Write the greeting.",
            "config": [{"type": "launch", "parameters": {"command": ["xterm", "-T", "Greeter"]}},
                       {"type": "activate_window", "parameters": {"window_name": "Greeter"}}],
            "evaluator": {
                "func": "exact_match",
                "result": {"type": "vm_command_line", "command": "cat /home/user/greeting", "shell": True},
                "expected": {"type": "rule", "rules": {"expected": "grüß 'dich'\n"}},
            },
        }
    )  # fmt: skip

    async def episode() -> tuple[float, bytes, bytes]:
        desktop = GuestDesktop(OneGuest())
        try:
            before = await desktop.reset(task)
            after = await desktop.execute(
                [Type(text="cat > greeting\ngrüß 'dich'\n"), Hotkey(keys=("ctrl", "d"))]
            )
            await desktop.execute([Finished()])
            return await desktop.evaluate(), before, after
        finally:
            await desktop.close()

    score, before, after = desk.run(episode())
    assert score == 1.0
    assert before != after
    desk.end("xterm")


@pytest.mark.xvfb
def test_a_moving_screen_is_waited_for(desk, client) -> None:
    desk.open_window(
        ["xterm", "-T", "Clock", "-e", "for i in $(seq 30); do echo $i; sleep 0.1; done; sleep 600"],
        "Clock",
        Settle(0.05, 0.1),
    )
    desk.run(client.settle(Settle(ceiling_s=30)))
    text = desk.run(client.terminal_output()) or ""
    assert text.split()[-1:] == ["30"], text
    desk.end("xterm")


def picture(*boxes: tuple[int, int, int, int]) -> bytes:
    image = Image.new("RGB", (200, 100), "white")
    for box in boxes:
        ImageDraw.Draw(image).rectangle(box, "black")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_blinking_caret_is_no_change_and_anything_wider_is() -> None:
    assert not _differ(picture(), picture((10, 10, 11, 40)))
    assert _differ(picture(), picture((10, 10, 16, 40)))
    assert _differ(picture(), picture((10, 10, 11, 80)))


def test_waits_are_made_here_and_long_texts_are_several_calls() -> None:
    text = "x" * 4500
    batches = list(_batches([Click(x=1, y=1), Wait(seconds=1), Type(text=text), Press(key="enter")]))
    assert batches[:2] == [[Click(x=1, y=1)], Wait(seconds=1)]
    typed: list[Action] = [action for batch in batches[2:] for action in batch]  # type: ignore[union-attr]
    assert "".join(action.text for action in typed if isinstance(action, Type)) == text
    assert typed[-1] == Press(key="enter")
    assert len(batches) > 4
    assert [len(batch) for batch in _batches([Move(x=1, y=1)] * 90)] == [40, 40, 10]  # type: ignore[arg-type]


def test_a_line_break_at_a_cut_is_pressed_once() -> None:
    for before in range(1990, 2003):
        pieces = [a for batch in _batches([Type(text="a" * before + "\r\nb")]) for a in batch]  # type: ignore[union-attr]
        assert "".join(piece.text for piece in pieces) == "a" * before + "\nb"


def test_terminal_actions_are_refused() -> None:
    client = OsworldGuestClient("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="terminal"):
        asyncio.run(client.act([Fail()], Settle()))
    assert isinstance(client, HttpGuestClient)
