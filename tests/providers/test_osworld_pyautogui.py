"""The program that performs actions, with the real PyAutoGUI that OSWorld's guests have, on a bare X display.

PyAutoGUI brings an Xlib of its own that would replace ours, so it gets an environment of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from osworld_guest import Guest

from arpo.guest_client import Settle
from arpo.guest_client.osworld import OsworldGuestClient
from arpo.protocol.actions import Action, Click, Drag, Hotkey, Press, Scroll, Type

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("Xvfb") and shutil.which("xterm")), reason="Xvfb and xterm are not installed"
    ),
]

TEXT = """it's "5" < 6 && '''x''' \\\\ | $HOME `~` {[(@#%^*+=?;:)]} äöüßéñ €£ Привет 日本語 → ✓ <ä>b"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with PyAutoGUI."""
    folder = tmp_path_factory.mktemp("pyautogui")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "pyautogui==0.9.54"]
    result = subprocess.run(install, capture_output=True, text=True, timeout=200, check=False)
    if result.returncode != 0:
        pytest.skip(f"PyAutoGUI cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


@pytest.fixture
def display(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an X display with nothing on it."""
    (tmp_path / "auth").touch()
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x720x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as number:
            yield {"DISPLAY": f":{number.readline().strip()}", "XAUTHORITY": str(tmp_path / "auth")}
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def terminal(display: dict[str, str], home: Path) -> Iterator[None]:
    environment = {**os.environ, **display, "HOME": str(home), "LC_ALL": "C.UTF-8"}
    command = [
        "xterm",
        "-u8",
        "-geometry",
        "200x50+0+0",
        "-e",
        "bash",
        "--norc",
        "-c",
        "touch up; exec bash --norc",
    ]
    process = subprocess.Popen(command, env=environment, cwd=home, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (home / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield
    process.terminate()
    process.wait()


def act(python: Path, display: dict[str, str], home: Path, *actions: Action) -> None:
    guest = Guest(("127.0.0.1", 0), home, (320, 200))
    guest.environment = {**display, "HOME": str(home), "PATH": f"{python.parent}:/usr/bin:/bin"}
    threading.Thread(target=guest.serve_forever, daemon=True).start()

    async def story() -> None:
        client = OsworldGuestClient(f"http://127.0.0.1:{guest.server_address[1]}")
        await client.act(actions, Settle(quiet_s=0.1, ceiling_s=1.0))
        await client.close()

    asyncio.run(story())
    guest.shutdown()
    guest.server_close()


def test_the_real_pyautogui_types_and_presses_what_was_asked(python, display, home, terminal) -> None:
    inside = Click(x=300, y=200)
    act(python, display, home, inside, Type(text=f"cat > typed.txt <<'END'\n{TEXT}\nEND\n"))
    act(
        python, display, home, inside,
        Type(text="touch wrong"), Hotkey(keys=("ctrl", "u")), Type(text="touch right"), Press(key="enter"),
        Scroll(x=300, y=200, direction="down", amount=2), Drag(x=30, y=600, to_x=300, to_y=620),
        Type(text="touch after-the-mouse\n"),
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while not (home / "after-the-mouse").exists():
        assert time.monotonic() < deadline, sorted(path.name for path in home.iterdir())
        time.sleep(0.05)
    assert (home / "typed.txt").read_text() == f"{TEXT}\n"
    assert (home / "right").exists()
    assert not (home / "wrong").exists()
