"""How large and how deep a task may be, so that no task can make the program that reads it choke.

Invariant: a document without a problem here can be walked recursively, printed, and sent as JSON or msgpack
in one request to an env-server, which reads 8 MiB.
"""

from __future__ import annotations

import json
import math
from typing import Any

from arpo.tasks.files import MAX_INLINE_BYTES

MAX_TASK_BYTES = 2**20
"""Most that a task may weigh as JSON in ASCII, the files inside it (`data:` URLs) not counted."""

MAX_FILE_BYTES = MAX_TASK_BYTES + MAX_INLINE_BYTES * 4 // 3
"""Most that a task weighs with its files, base64 as they are."""

MAX_DEPTH = 64
"""Most lists and objects inside one another."""

MAX_STEPS = 200
"""Most setup steps in `config`, and in the evaluator's `postconfig`."""

MAX_METRICS = 64
"""Most metrics of one evaluator."""

MAX_INSTRUCTION = 20_000
"""Most characters of an instruction."""

MAX_NAME = 200
"""Most characters of an id, and of what names a metric, a getter or a setup step."""

_DATA = "data:"
_SHOWN = 300  # characters of a field's place in messages
_SEPARATORS = 4  # bytes: brackets, commas, colons and spaces in JSON; lengths in msgpack
_NUMBER = 9  # bytes of the longest in msgpack
_INTEGERS = range(-(2**63), 2**64)  # what msgpack carries


def size_problem(document: Any) -> str | None:
    """The first thing about a JSON document that is too large or no JSON, as `field: reason`; None when all is well."""
    weight, files = 0, 0
    waiting: list[tuple[str, int, Any]] = [("", 1, document)]
    while waiting:
        place, depth, value = waiting.pop()
        if isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                return f"{_cut(place)}: more than {MAX_DEPTH} lists and objects inside one another"
            weight += _SEPARATORS
            for key in value if isinstance(value, dict) else ():
                wrong = _text_problem(key)
                if wrong is not None:
                    return f"{_cut(place) or 'task'}: a key is {wrong}"
                weight += _weight(key)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                waiting.append((f"{_cut(place)}.{key}" if place else str(key), depth + 1, item))
        elif isinstance(value, str):
            wrong = _text_problem(value)
            if wrong is not None:
                return f"{_cut(place)}: {wrong}"
            if value.startswith(_DATA):
                files += _weight(value)
            else:
                weight += _weight(value)
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{_cut(place)}: {value} is not JSON"
        elif isinstance(value, int) and value not in _INTEGERS:
            return f"{_cut(place)}: an integer of more than 64 bits"
        elif value is None or isinstance(value, bool | int | float):
            weight += max(_weight(value), _NUMBER)
        else:
            return f"{_cut(place)}: a {type(value).__name__} is not JSON"
        if weight > MAX_TASK_BYTES:
            return f"{_cut(place)}: the task is larger than {MAX_TASK_BYTES >> 10} KiB (files inside it not counted)"
        if files > MAX_FILE_BYTES - MAX_TASK_BYTES:
            return f"{_cut(place)}: the task's files are larger than {MAX_INLINE_BYTES >> 20} MiB; serve them over HTTP"
    return None


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not a string"
    if "\0" in text:
        return "text with a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text with half a surrogate pair, which is no Unicode"
    return None


def _weight(value: str | float | None) -> int:
    return len(json.dumps(value)) + _SEPARATORS


def _cut(place: str) -> str:
    shown = place if place.isprintable() else ascii(place)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
