"""The program that performs actions on a guest of OSWorld's, with the `pyautogui` that such a guest has.

It is never imported here: `arpo.guest_client.osworld` sends its source to the guest as `python -c SOURCE PAYLOAD`. The
payload is base64 of zlib of JSON, `{"actions": [...], "modules": {name: source}}`: what an agent types is data all the
way and never part of any code. `modules` are `arpo.guest`'s keyboard, there when a character is to be typed that
pyautogui leaves out, which types ASCII only; that works on X11.

Runs on the guest's Python (3.9 or later), with nothing of ARPO around it.
"""

from __future__ import annotations

import base64
import functools
import importlib
import json
import sys
import time
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

# Between two actions: programs put off some keys, and text must not overtake them.
REST_S = 0.15
BETWEEN_CLICKS_S = 0.05
DRAG_S = 0.4
BEFORE_DROP_S = 0.06
NAMES = {"super": "win", "menu": "apps"}
MODIFIERS = {"ctrl", "alt", "shift", "super"}
# pyautogui presses the wrong key for it on X11: https://github.com/asweigart/pyautogui/issues/198
LESS_THAN = ("shift", ",")


def perform(gui: Any, action: Mapping[str, Any], modules: Mapping[str, str]) -> None:
    """Perform one action with `gui`, which is the module pyautogui."""
    kind = action["kind"]
    if kind == "click":
        gui.click(
            action["x"],
            action["y"],
            clicks=action["clicks"],
            interval=BETWEEN_CLICKS_S,
            button=action["button"],
        )
    elif kind == "move":
        gui.moveTo(action["x"], action["y"])
    elif kind == "drag":
        gui.moveTo(action["x"], action["y"])
        gui.mouseDown(button=action["button"])
        gui.moveTo(action["to_x"], action["to_y"], duration=DRAG_S)
        time.sleep(BEFORE_DROP_S)
        gui.mouseUp(button=action["button"])
    elif kind == "scroll":
        gui.moveTo(action["x"], action["y"])
        turn = gui.scroll if action["direction"] in ("up", "down") else gui.hscroll
        turn(action["amount"] * (1 if action["direction"] in ("up", "right") else -1))
    elif kind == "type":
        type_text(gui, action["text"], modules)
    elif kind == "hotkey":
        hotkey(gui, action["keys"], modules)
    elif kind == "press":
        hotkey(gui, [action["key"]], modules)
    elif kind == "key_down":
        gui.keyDown(key_name(gui, action["key"]))
    elif kind == "key_up":
        gui.keyUp(key_name(gui, action["key"]))
    else:
        raise ValueError("unknown action " + kind)


def key_name(gui: Any, key: str) -> str:
    """pyautogui's name of a key; pyautogui itself does nothing at all for one that it does not know."""
    name = NAMES.get(key, key)
    if not gui.isValidKey(name):
        raise ValueError("this guest's pyautogui has no key " + repr(key))
    return name


def hotkey(gui: Any, keys: Sequence[str], modules: Mapping[str, str]) -> None:
    """Press keys together; with a modifier, letters have no case."""
    if list(keys) == ["<"]:
        keys = LESS_THAN
    elif len(keys) == 1 and not keys[0].isascii():
        type_foreign(keys[0], modules)
        return
    if MODIFIERS.intersection(keys):
        keys = [key.lower() for key in keys]
    gui.hotkey(*[key_name(gui, key) for key in keys])


def type_text(gui: Any, text: str, modules: Mapping[str, str]) -> None:
    """Type any Unicode text; a newline presses Enter, a tab presses Tab, other control characters are left out."""
    for own, run in runs(text.replace("\r\n", "\n")):
        if run == "<":
            gui.hotkey(*LESS_THAN)
        elif own:
            gui.write(run)
        else:
            type_foreign(run, modules)


def runs(text: str) -> list[tuple[bool, str]]:
    """Pairs of whether pyautogui can type a run of characters, and the run; every "<" is a run of its own."""
    found: list[tuple[bool, str]] = []
    for character in text:
        own = character.isascii()
        if own and not (character.isprintable() or character in "\r\n\t"):
            continue
        if found and found[-1][0] == own and "<" not in (found[-1][1], character):
            found[-1] = (own, found[-1][1] + character)
        else:
            found.append((own, character))
    return found


def type_foreign(text: str, modules: Mapping[str, str]) -> None:
    """Type what pyautogui cannot."""
    if not sys.platform.startswith("linux"):
        raise ValueError("only ASCII can be typed on a guest with " + sys.platform + ", not " + repr(text))
    keyboard = own_keyboard(tuple(modules.items()))
    keyboard.type_text(text)
    keyboard._display.sync()


@functools.cache
def own_keyboard(modules: tuple[tuple[str, str], ...]) -> Any:
    """`arpo.guest`'s Keyboard, made from its sources."""
    package = types.ModuleType("arpo_keys")
    package.__path__ = []
    sys.modules[package.__name__] = package
    for name, source in modules:
        module = types.ModuleType(package.__name__ + "." + name)
        sys.modules[module.__name__] = module
        setattr(package, name, module)
        exec(compile(source, name, "exec"), vars(module))  # noqa: S102 - ARPO's own source
    display = importlib.import_module("Xlib.display").Display()
    return package.keyboard.Keyboard(display)


def main() -> None:
    """Perform what the payload says."""
    payload = json.loads(zlib.decompress(base64.b64decode(sys.argv[1])))
    pyautogui: Any = importlib.import_module("pyautogui")

    pyautogui.FAILSAFE = False
    pyautogui.PAUSE = 0.02
    for number, action in enumerate(payload["actions"]):
        if number:
            time.sleep(REST_S)
        perform(pyautogui, action, payload["modules"])


if __name__ == "__main__":
    main()
