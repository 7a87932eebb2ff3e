"""What each call of the UI-TARS grammar means: calls to typed actions and back.

Invariant: `to_action(to_call(action, grid), grid)` is the same action, its coordinates within the bound that
`Grid.to_policy` states.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import assert_never

from pydantic import ValidationError

from arpo.agent.coordinates import Grid, OffScreenError
from arpo.agent.grammar import Call, FormatError, excerpt
from arpo.protocol.actions import (
    Action,
    CallUser,
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
from arpo.protocol.keys import canonical_key
from arpo.protocol.problems import ConfigError

# UI-TARS-1.5's later prompts call boxes points; models also name the key argument after the call.
_SPELLINGS = {
    "point": "start_box",
    "start_point": "start_box",
    "end_point": "end_box",
    "hotkey": "key",
    "press": "key",
}

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_NUMBERS = re.compile(_NUMBER)
_BOX_TAGS = re.compile(r"<\|box_start\|>|<\|box_end\|>|</?point>|</?bbox>")
_BOX_SEPARATOR = re.compile(r" ?, ?| ")
_BOX_PADDING = re.compile(r"(?<=[(\[]) | (?=[)\]])")
_BOX = re.compile(rf"[(\[]?{_NUMBER},{_NUMBER}(?:[)\]]?,[(\[]?{_NUMBER},{_NUMBER})?[)\]]?")

_KEY = re.compile(r"[^\s+]+|\+")
_KEY_SEPARATOR = re.compile(r"\s*\+\s*(?=\S)|\s+")


class _Arguments:
    """The arguments of one call, taken one by one, so that what nobody took is an error."""

    def __init__(self, call: Call, grid: Grid) -> None:
        self._name = call.name
        self._grid = grid
        self._values: dict[str, str] = {}
        for name, value in call.arguments.items():
            canonical = _SPELLINGS.get(name, name)
            if canonical in self._values:
                raise FormatError(f"{call.name}: {name} is given twice")
            self._values[canonical] = value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.pop(name, default)
        if value is None:
            raise FormatError(f"{self._name} needs {name}")
        return value

    def point(self, name: str) -> tuple[int, int]:
        return self._point(self.text(name))

    def point_or_centre(self, name: str) -> tuple[int, int]:
        width, height = self._grid.screen
        return self._point(self._values.pop(name)) if name in self._values else (width // 2, height // 2)

    def key(self, name: str) -> str:
        keys = self.keys(name)
        if len(keys) != 1:
            raise FormatError(f"{self._name} takes one key, not {' '.join(keys)}; hotkey takes several")
        return keys[0]

    def keys(self, name: str) -> tuple[str, ...]:
        text = self.text(name)
        try:
            return split_keys(text)
        except ValueError as error:
            raise FormatError(f"{self._name}: {error} in {excerpt(text)}") from error

    def done(self) -> None:
        if self._values:
            raise FormatError(f"{self._name} takes no {' and no '.join(map(excerpt, self._values))}")

    def _point(self, text: str) -> tuple[int, int]:
        try:
            return self._grid.to_screen(*box_centre(text))
        except OffScreenError as error:
            raise FormatError(f"{self._name}: {error}") from error


def _click(arguments: _Arguments) -> Click:
    x, y = arguments.point("start_box")
    return Click(x=x, y=y)


def _double_click(arguments: _Arguments) -> Click:
    x, y = arguments.point("start_box")
    return Click(x=x, y=y, clicks=2)


def _right_click(arguments: _Arguments) -> Click:
    x, y = arguments.point("start_box")
    return Click(x=x, y=y, button="right")


def _hover(arguments: _Arguments) -> Move:
    x, y = arguments.point("start_box")
    return Move(x=x, y=y)


def _drag(arguments: _Arguments) -> Drag:
    x, y = arguments.point("start_box")
    to_x, to_y = arguments.point("end_box")
    return Drag(x=x, y=y, to_x=to_x, to_y=to_y)


def _scroll(arguments: _Arguments) -> Scroll:
    x, y = arguments.point_or_centre("start_box")
    direction = arguments.text("direction").strip().lower()
    if direction not in ("up", "down", "left", "right"):
        raise FormatError(f"scroll: direction is up, down, left or right, not {excerpt(direction)}")
    return Scroll(x=x, y=y, direction=direction)


_MEANINGS: dict[str, Callable[[_Arguments], Action]] = {
    "click": _click,
    "left_single": _click,
    "left_double": _double_click,
    "right_single": _right_click,
    "hover": _hover,
    "drag": _drag,
    "select": _drag,
    "scroll": _scroll,
    "type": lambda arguments: Type(text=arguments.text("content")),
    "hotkey": lambda arguments: Hotkey(keys=arguments.keys("key")),
    "press": lambda arguments: Press(key=arguments.key("key")),
    "keydown": lambda arguments: KeyDown(key=arguments.key("key")),
    "keyup": lambda arguments: KeyUp(key=arguments.key("key")),
    "release": lambda arguments: KeyUp(key=arguments.key("key")),
    "wait": lambda arguments: Wait(),
    "finished": lambda arguments: Finished(content=arguments.text("content", "")),
    # Blaming the environment gives the task up, OSWorld's FAIL: right only where it cannot be done.
    "error_env": lambda arguments: Fail(reason=arguments.text("content", "")),
    "call_user": lambda arguments: CallUser(),
}


def to_action(call: Call, grid: Grid) -> Action:
    """The action that a call means on a screen.

    A scroll without a box is at the centre of the screen. Raises FormatError for an unknown call, a missing,
    unknown or malformed argument, and a point off the screen.
    """
    meaning = _MEANINGS.get(call.name)
    if meaning is None:
        raise FormatError(f"there is no call {call.name}; the calls are {', '.join(_MEANINGS)}")
    arguments = _Arguments(call, grid)
    try:
        action = meaning(arguments)
    except ValidationError as error:
        raise FormatError(f"{call.name}: {error.errors()[0]['msg']}") from error
    arguments.done()
    return action


def to_call(action: Action, grid: Grid, *, box_tokens: bool) -> Call:
    """The call that means an action: the inverse of `to_action`.

    box_tokens: put `<|box_start|>` and `<|box_end|>` around boxes, as UI-TARS was trained to write them.
    Raises ConfigError for an action that the grammar has no words for (a triple click, say).
    """

    def box(x: int, y: int) -> str:
        across, down = grid.to_policy(x, y)
        return f"<|box_start|>({across},{down})<|box_end|>" if box_tokens else f"({across},{down})"

    match action:
        case Click(button="left", clicks=1):
            return Call("click", {"start_box": box(action.x, action.y)})
        case Click(button="left", clicks=2):
            return Call("left_double", {"start_box": box(action.x, action.y)})
        case Click(button="right", clicks=1):
            return Call("right_single", {"start_box": box(action.x, action.y)})
        case Move():
            return Call("hover", {"start_box": box(action.x, action.y)})
        case Drag(button="left"):
            ends = {"start_box": box(action.x, action.y), "end_box": box(action.to_x, action.to_y)}
            return Call("drag", ends)
        case Scroll(amount=5):
            return Call("scroll", {"start_box": box(action.x, action.y), "direction": action.direction})
        case Type():
            return Call("type", {"content": action.text})
        case Hotkey():
            # a plain space would make a separator of the key `+`
            return Call("hotkey", {"key": (" + " if "+" in action.keys else " ").join(action.keys)})
        case Press():
            return Call("press", {"key": action.key})
        case KeyDown():
            return Call("keydown", {"key": action.key})
        case KeyUp():
            return Call("keyup", {"key": action.key})
        case Wait(seconds=5.0):
            return Call("wait")
        case Finished():
            return Call("finished", {"content": action.content} if action.content else {})
        case Fail():
            return Call("error_env", {"content": action.reason} if action.reason else {})
        case CallUser():
            return Call("call_user")
        case Click() | Drag() | Scroll() | Wait():
            raise ConfigError(
                f"the UI-TARS grammar has no words for {action!r}; it clicks left once or twice and right "
                "once, drags with the left button, scrolls 5 notches and waits 5 s"
            )
        case _:
            assert_never(action)


def box_centre(text: str) -> tuple[float, float]:
    """The centre of a box in the policy's coordinates.

    A box is `(x,y)` or `(x1,y1,x2,y2)`, bare, in brackets, `<|box_start|>…<|box_end|>` or `<point>…</point>`.
    Raises FormatError.
    """
    spaced = " ".join(_BOX_TAGS.sub(" ", text).split())
    bare = _BOX_SEPARATOR.sub(",", _BOX_PADDING.sub("", spaced))
    if _BOX.fullmatch(bare) is None:
        raise FormatError(f"{excerpt(text)} is no box; a box is (x,y) or (x1,y1,x2,y2)")
    numbers = [float(number) for number in _NUMBERS.findall(bare)]
    return (numbers[0] + numbers[-2]) / 2, (numbers[1] + numbers[-1]) / 2


def split_keys(text: str) -> tuple[str, ...]:
    """The keys of `ctrl c`, `ctrl+c` or `ctrl + c`, canonical. A `+` that nothing follows is the key `+`.

    Raises ValueError for a name that is no key.
    """
    try:
        return (canonical_key(text),)
    except ValueError:
        pass
    text = text.strip()
    keys: list[str] = []
    position = 0
    while position < len(text):
        if keys:
            separator = _KEY_SEPARATOR.match(text, position)
            if separator is None:
                raise ValueError(f"no key after {text[:position]!r}")
            position = separator.end()
        key = _KEY.match(text, position)
        if key is None:
            raise ValueError(f"no key after {text[:position]!r}")
        keys.append(canonical_key(key[0]))
        position = key.end()
    if not keys:
        raise ValueError("no key")
    return tuple(keys)
