"""A desktop does what it is told: pictures, input, files, windows, settling."""

from __future__ import annotations

import io
import time
import zipfile
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from arpo.guest_client import GuestError, GuestFileMissing, Settle
from arpo.protocol.actions import (
    Click,
    Drag,
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
from arpo.telemetry import phases

pytestmark = pytest.mark.xvfb

TERMINAL = ["xterm", "-T", "Terminal"]

# Enter presses a GTK dialog's button for half a second by timers: nothing changes, nothing computes, until it acts.
AFTER_A_DIALOG = Settle(quiet_s=1.0, ceiling_s=15)


def picture(desk) -> Image.Image:
    return Image.open(io.BytesIO(desk.run(desk.client.screenshot()))).convert("RGB")


def colours(image: Image.Image) -> int:
    return len(image.getcolors(maxcolors=1 << 24))


def eventually(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def terminal(desk):
    """A terminal with a fresh prompt and the focus."""
    desk.open_window(TERMINAL, "Terminal")
    yield desk
    desk.close_window("Terminal")
    desk.end("xterm")


@pytest.fixture
def events(desk):
    """A window that writes down every input event it gets."""
    desk.run(desk.client.write_file("/tmp/events.py", EVENT_WINDOW.encode()))
    desk.open_window(["python3", "/tmp/events.py"], "Events")

    def seen() -> list[str]:
        return desk.read("/tmp/events.txt").split("\n")[:-1]

    yield seen
    desk.end("/tmp/events.py")


EVENT_WINDOW = """
from Xlib import X, XK
from Xlib.display import Display
XK.load_keysym_group("latin1")
display = Display()
screen = display.screen()
mask = X.ButtonPressMask | X.ButtonReleaseMask | X.ButtonMotionMask | X.KeyPressMask | X.KeyReleaseMask
window = screen.root.create_window(0, 0, 400, 300, 0, screen.root_depth, background_pixel=0xffffff,
                                   event_mask=mask | X.StructureNotifyMask)
window.set_wm_name("Events")
window.set_wm_class("events", "Events")
window.map()
gc = window.create_gc(foreground=0)
log = open("/tmp/events.txt", "w", buffering=1)
while True:
    event = display.next_event()
    if event.type in (X.ButtonPress, X.ButtonRelease):
        where = screen.root.translate_coords(window, event.event_x, event.event_y)
        log.write(f"{'+-'[event.type == X.ButtonRelease]}{event.detail} {event.root_x},{event.root_y}\\n")
        window.fill_rectangle(gc, event.event_x, event.event_y, 20, 20)
    elif event.type == X.MotionNotify:
        log.write(f"~ {event.root_x},{event.root_y}\\n")
    elif event.type in (X.KeyPress, X.KeyRelease):
        symbol = display.keycode_to_keysym(event.detail, 0)
        name = next(name[3:] for name in dir(XK) if name[:3] == "XK_" and getattr(XK, name) == symbol)
        log.write(f"{'+-'[event.type == X.KeyRelease]}{name}\\n")
"""


def test_a_new_desktop_shows_its_background_and_the_mouse(desk) -> None:
    desk.act(Move(x=640, y=360))
    image = picture(desk)
    assert image.size == (1280, 720)
    assert image.getpixel((10, 10)) == image.getpixel((1200, 700)) != (0, 0, 0)
    assert colours(image.crop((620, 340, 680, 400))) > 1  # the mouse cursor
    assert colours(image.crop((0, 0, 600, 300))) == 1


def test_the_accessibility_bus_runs_before_the_first_program_asks_for_it(desk) -> None:
    eventually(lambda: "at-spi-bus-laun" in desk.shell("ps -eo comm"))


def test_typed_text_reaches_a_program_whatever_alphabet_it_is_in(terminal) -> None:
    text = 'It\'s 5 < 6 && "a"\\b | $HOME `~` {[(@#%^*+=?;:)]} äöüßéñ €£ Привет 日本語 → ✓ 😀'
    terminal.act(Type(text=f"cat > typed.txt <<'END'\n{text}\nEND\n"))
    assert terminal.read("typed.txt") == f"{text}\n"


def test_text_with_more_symbols_than_the_keyboard_has_keys_is_typed_whole(terminal) -> None:
    symbols = "".join(chr(0x4E00 + n) for n in range(160))
    terminal.act(Type(text=f"cat > many.txt <<'END'\n{symbols}\n{symbols[::-1]}\nEND\n"))
    assert terminal.read("many.txt") == f"{symbols}\n{symbols[::-1]}\n"


def test_tab_and_newline_are_keys(terminal) -> None:
    terminal.shell("touch ~/only_one_such_file")
    terminal.act(Type(text="echo only_one_s\t > completed.txt\n"))
    assert terminal.read("completed.txt") == "only_one_such_file\n"


def test_hotkeys_reach_the_program(terminal) -> None:
    terminal.act(Type(text="touch wrong"), Hotkey(keys=("ctrl", "u")), Type(text="touch right\n"))
    terminal.act(Type(text="sleep 600\n"), Hotkey(keys=("ctrl", "C")), Type(text="touch interrupted\n"))
    names = terminal.shell("ls").split()
    assert {"right", "interrupted"} <= set(names)
    assert "wrong" not in names


def test_the_terminals_text_can_be_read(terminal) -> None:
    terminal.act(Type(text="echo $((6*7)) grüße\n"))
    output = terminal.run(terminal.client.terminal_output())
    assert output is not None
    assert "42 grüße" in output.split("\n")


def test_without_a_terminal_there_is_no_terminal_text(desk) -> None:
    assert desk.run(desk.client.terminal_output()) is None


def test_clicks_arrive_where_they_were_aimed_as_often_as_asked(events, desk) -> None:
    desk.act(Click(x=200, y=150, button="right"), Click(x=300, y=250, clicks=2))
    assert events() == ["+3 200,150", "-3 200,150", *["+1 300,250", "-1 300,250"] * 2]


def test_a_drag_moves_through_the_points_between(events, desk) -> None:
    desk.act(Drag(x=100, y=100, to_x=500, to_y=300))
    seen = events()
    assert (seen[0], seen[-1]) == ("+1 100,100", "-1 500,300")
    assert len([line for line in seen if line.startswith("~")]) >= 5


@pytest.mark.parametrize(("direction", "button"), [("up", 4), ("down", 5), ("left", 6), ("right", 7)])
def test_scrolling_turns_the_wheel_by_notches(events, desk, direction: str, button: int) -> None:
    desk.act(Scroll(x=400, y=300, direction=direction, amount=3))
    assert events() == [f"+{button} 400,300", f"-{button} 400,300"] * 3


def test_keys_are_held_between_key_down_and_key_up(events, desk) -> None:
    desk.act(KeyDown(key="shift"))
    desk.act(Press(key="a"), KeyUp(key="shift"), Press(key="f5"))
    assert events() == ["+Shift_L", "+a", "-a", "-Shift_L", "+F5", "-F5"]


def test_a_hotkey_is_released_in_reverse(events, desk) -> None:
    desk.act(Hotkey(keys=("ctrl", "alt", "delete")))
    assert events() == ["+Control_L", "+Alt_L", "+Delete", "-Delete", "-Alt_L", "-Control_L"]


def test_a_cell_typed_into_calc_is_in_the_saved_file(desk) -> None:
    desk.run(desk.client.write_file("/home/user/Desktop/table.csv", b"name,amount\n"))
    desk.run(desk.client.open_file("/home/user/Desktop/table.csv"))
    desk.act(Press(key="enter"), settle=AFTER_A_DIALOG)  # the import dialog
    desk.act(Press(key="down"), Type(text="Zürich\t42\n"))
    desk.act(Hotkey(keys=("ctrl", "s")))
    eventually(
        lambda: desk.read("/home/user/Desktop/table.csv").split("\n")[:2] == ["name,amount", "Zürich,42"]
    )
    tree = ET.fromstring(desk.run(desk.client.accessibility_tree()))
    cells = [node.text for node in tree.iter("table-cell")]
    assert "Zürich" in cells
    assert 20 < len(cells) < 5000  # the visible ones only
    desk.end("soffice")


def test_writer_saves_what_was_typed(desk) -> None:
    desk.open_window(["soffice", "--writer"], "Writer", Settle(0.5, 15))
    desk.act(Type(text="Dear reader\n"), Hotkey(keys=("ctrl", "s")), settle=Settle(0.5, 10))
    desk.act(Hotkey(keys=("ctrl", "a")), Type(text="/home/user/letter.odt"), settle=Settle(0.5, 10))
    desk.act(Press(key="enter"), settle=AFTER_A_DIALOG)
    document = zipfile.ZipFile(io.BytesIO(desk.run(desk.client.read_file("/home/user/letter.odt"))))
    assert b"Dear reader" in document.read("content.xml")
    desk.end("soffice")


def test_chromium_keeps_its_own_sandbox_and_shows_a_local_page(desk) -> None:
    desk.run(desk.client.write_file("/tmp/site/index.html", b"<title>Local page</title><h1>Hello</h1>"))
    desk.run(desk.client.launch(["python3", "-m", "http.server", "8000", "--directory", "/tmp/site"]))
    desk.shell("bash -c 'until (echo > /dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.02; done'")
    desk.open_window(["google-chrome", "http://127.0.0.1:8000/"], "Local page", Settle(0.5, 15))
    command_lines = desk.shell("ps -eo args | grep [c]hromium/chromium")
    assert "--type=zygote" in command_lines
    assert "--no-sandbox" not in command_lines
    desk.end("chromium")
    desk.end("http.server")


def test_a_quiet_screen_settles_at_once(desk) -> None:
    start = time.monotonic()
    desk.run(desk.client.settle(Settle(quiet_s=0.2, ceiling_s=5)))
    assert 0.2 <= time.monotonic() - start < 1.5


def test_a_wait_goes_on_from_the_one_before_unless_something_was_done_between(desk) -> None:
    quiet = Settle(quiet_s=2.0, ceiling_s=30)

    def seconds(*before) -> float:
        for call in before:
            desk.run(call)
        start = time.monotonic()
        desk.run(desk.client.settle(quiet))
        return time.monotonic() - start

    assert seconds(desk.client.settle(quiet)) < 1.0
    # Whatever may have touched the desktop makes it wait anew: programs answer only after a while.
    assert seconds(desk.client.settle(quiet), desk.client.execute(["true"])) >= 2.0
    assert seconds(desk.client.settle(quiet), desk.client.act([Move(x=5, y=5)], Settle(0, 0))) >= 1.0


def test_a_late_repaint_is_waited_for(desk) -> None:
    code = (
        "import time; from Xlib.display import Display; d = Display()\n"
        "w = d.screen().root; g = w.create_gc(foreground={})\n"
        "for n in range({}): time.sleep({}); w.fill_rectangle(g, 50, 50, 100, 100 + n); d.sync()"
    )
    desk.run(desk.client.launch(["python3", "-c", code.format(0xFF0000, 6, 0.25)]))
    start = time.monotonic()
    desk.run(desk.client.settle(Settle(quiet_s=0.5, ceiling_s=10)))
    assert (
        time.monotonic() - start > 1.5
    )  # six repaints a quarter of a second apart, then half a second of quiet
    assert picture(desk).getpixel((100, 150)) == (255, 0, 0)
    desk.run(desk.client.launch(["python3", "-c", code.format(0x00FF00, 400, 0.02)]))
    start = time.monotonic()
    desk.run(desk.client.settle(Settle(quiet_s=0.5, ceiling_s=1.0)))
    assert 1.0 <= time.monotonic() - start < 2.5  # the ceiling
    desk.end("fill_rectangle")


def test_a_program_that_computes_before_it_paints_is_waited_for(desk) -> None:
    code = "import time; t = time.time()\nwhile time.time() < t + 1.2: pass"
    desk.run(desk.client.launch(["python3", "-c", code]))
    start = time.monotonic()
    desk.run(desk.client.settle(Settle(quiet_s=0.1, ceiling_s=10)))
    assert time.monotonic() - start > 0.8


def test_waiting_takes_as_long_as_asked(desk) -> None:
    start = time.monotonic()
    desk.act(Wait(seconds=0.7), settle=Settle(0, 0))
    assert time.monotonic() - start >= 0.7


def test_the_guest_tells_acting_from_settling(desk) -> None:
    async def act() -> phases.Phases:
        with phases.record() as taken:
            await desk.client.act([Wait(seconds=0.7)], Settle(quiet_s=0.4, ceiling_s=0.5))
        return taken

    taken = desk.run(act())
    assert taken["act"] >= 0.7
    assert taken["settle"] >= 0.4


def test_terminal_actions_are_refused(desk) -> None:
    with pytest.raises(ValueError, match="terminal actions"):
        desk.act(Finished())


def test_files_are_written_with_their_folders_and_read_back(desk) -> None:
    data = bytes(range(256)) * 5000
    desk.run(desk.client.write_file("~/a/new folder/dätei.bin", data))
    assert desk.run(desk.client.read_file("/home/user/a/new folder/dätei.bin")) == data
    assert desk.run(desk.client.list_directory("~/a")) == {
        "type": "directory",
        "name": "a",
        "children": [
            {"type": "directory", "name": "new folder", "children": [{"type": "file", "name": "dätei.bin"}]}
        ],
    }
    with pytest.raises(GuestFileMissing):
        desk.run(desk.client.read_file("~/a"))
    with pytest.raises(GuestFileMissing):
        desk.run(desk.client.read_file("~/nothing"))


def test_commands_report_how_they_ended(desk) -> None:
    result = desk.run(desk.client.execute("echo out; echo err >&2; exit 3", shell=True))
    assert (result.returncode, result.output, result.error) == (3, "out\n", "err\n")
    assert desk.run(desk.client.execute("printf '%s|' a 'b c'")).output == "a|b c|"
    with pytest.raises(GuestError, match="nosuchprogram"):
        desk.run(desk.client.execute(["nosuchprogram"]))
    with pytest.raises(GuestError, match="nosuchprogram"):
        desk.run(desk.client.launch(["nosuchprogram"]))


def test_a_command_that_does_not_end_is_ended_with_its_children(desk) -> None:
    start = time.monotonic()
    with pytest.raises(GuestError, match=r"not finished within 0.5 s"):
        desk.run(desk.client.execute("sleep 4321 & sleep 4321", shell=True, timeout_s=0.5))
    assert time.monotonic() - start < 5
    assert "4321" not in desk.shell("ps -eo args | grep -v grep")


def test_windows_are_raised_and_closed_by_name_or_class(terminal) -> None:
    terminal.open_window(["xterm", "-T", "Another one"], "Another")
    client = terminal.client
    assert terminal.run(client.activate_window("termi"))
    assert not terminal.run(client.activate_window("termi", strict=True))
    assert terminal.run(client.activate_window("Terminal", strict=True))
    terminal.act(Type(text="touch in_the_first\n"))
    assert "in_the_first" in terminal.shell("ls")
    assert terminal.run(client.activate_window("xterm.XTerm", strict=True, by_class=True))
    assert terminal.run(client.close_window("Another one", strict=True))
    terminal.shell("while [ $(pgrep -cx xterm) != 1 ]; do sleep 0.02; done")
    assert not terminal.run(client.close_window("Another one"))


def test_pyautogui_programs_run(terminal) -> None:
    assert (
        terminal.python("import pyautogui; pyautogui.moveTo(12, 34); print(*pyautogui.position())") == "12 34"
    )
    assert terminal.python("import pyautogui; print(pyautogui.size())") == "Size(width=1280, height=720)"
    terminal.python(
        "import pyautogui; pyautogui.FAILSAFE = False; pyautogui.PAUSE = 0; pyautogui.click(640, 360);"
        "pyautogui.write('cat > auto.txt\\n<5 é>'); pyautogui.press(['enter']); pyautogui.hotkey('ctrl', 'd')"
    )
    terminal.run(terminal.client.settle(Settle()))
    assert terminal.read("auto.txt") == "<5 é>\n"


def test_pyautogui_moves_and_drags_with_easing(events, desk) -> None:
    desk.python(
        "import pyautogui as p; p.moveTo(100, 100, 0.3, p.easeInElastic); p.dragTo(300, 200, duration=0.3, button='left');"
        "p.scroll(-2); p.hscroll(1); p.doubleClick(); p.keyDown('ctrl'); p.keyUp('ctrl'); p.press('nosuchkey')"
    )
    seen = [line for line in events() if not line.startswith("~")]
    assert seen == [
        "+1 100,100", "-1 300,200", *["+5 300,200", "-5 300,200"] * 2, "+7 300,200", "-7 300,200",
        *["+1 300,200", "-1 300,200"] * 2, "+Control_L", "-Control_L",
    ]  # fmt: skip
