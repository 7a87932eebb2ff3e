"""Refuses tasks that could not run, before a desktop is touched.

Invariant: a task that passes is of bounded size and names only metrics, getters and setup steps that exist, with
arguments paired as OSWorld pairs them. Whatever the document is, a refusal is one line: file, field, reason and, for a
misspelt name, the nearest known one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from arpo.protocol.problems import ConfigError
from arpo.tasks.limits import MAX_FILE_BYTES, MAX_METRICS, MAX_NAME, size_problem
from arpo.tasks.model import INFEASIBLE, SetupStep, Task
from arpo.tasks.osworld_names import GETTERS, METRICS, SETUP_STEPS

_UNION_TAGS = ("str", "list[", "dict[")


def nearest(name: str, known: Collection[str]) -> str:
    """`; nearest: 'x'`, or nothing when no known name resembles `name`."""
    if len(name) > MAX_NAME:  # comparing takes the square of the length
        return ""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; nearest: {matches[0]!r}" if matches else ""


def problems(task: Task) -> list[str]:
    """What is wrong with a task's names and shapes, each `field: reason`; empty when it can run."""
    return [*_setup_problems("config", task.config), *_evaluator_problems(task)]


def parse_task(document: Any, where: str, *, domain: str = "", path: Path | None = None) -> Task:
    """The task of a JSON document.

    where: what to call the document in messages (a path, "task").
    Raises ConfigError with the first problem.
    """
    task, found = examine(document, domain=domain, path=path)
    if task is None or found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(f"{where}: {found[0]}{more}")
    return task


def read_task(path: Path) -> Task:
    """The task in a file `<domain>/<id>.json`. Raises ConfigError."""
    return parse_task(_load(path), shown(path), domain=path.parent.name, path=path)


def file_problems(path: Path) -> list[str]:
    """Everything that is wrong with a task file, each `file: field: reason`."""
    try:
        document = _load(path)
    except ConfigError as error:
        return [str(error)]
    _, found = examine(document, domain=path.parent.name, path=path)
    return [f"{shown(path)}: {problem}" for problem in found]


def examine(document: Any, *, domain: str = "", path: Path | None = None) -> tuple[Task | None, list[str]]:
    """The task (None when its shape is wrong) and all its problems."""
    if not isinstance(document, dict):
        return None, ["not a JSON object"]
    too_large = size_problem(document)
    if too_large is not None:
        return None, [too_large]
    try:
        task = Task.model_validate({**document, "domain": domain, "path": path})
    except ValidationError as error:
        return None, list(dict.fromkeys(_readable(error)))
    found = problems(task)
    if path is not None and task.id != path.stem:
        found.insert(0, f"id: {task.id!r} is not the file's name {path.stem!r}")
    return task, found


def shown(path: Path) -> str:
    """A path as people want to read it: relative to the working directory when it is inside."""
    cwd = Path.cwd()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{shown(path)}: larger than {MAX_FILE_BYTES / 2**20:.1f} MiB, the most for a task"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{shown(path)}: no such task file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{shown(path)}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        raise ConfigError(f"{shown(path)}: cannot be read: {error}") from error


def _readable(error: ValidationError) -> Iterator[str]:
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        parts = [_part(part) for part in one["loc"]]
        while parts and parts[-1].startswith(_UNION_TAGS):
            parts.pop()
        yield f"{'.'.join(parts)}: {one['msg'].removeprefix('Value error, ').lower()}"


def _part(part: int | str) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= MAX_NAME else f"{text!r:.{MAX_NAME}}"


def _setup_problems(field: str, steps: list[SetupStep]) -> Iterator[str]:
    for index, step in enumerate(steps):
        if step.type not in SETUP_STEPS:
            yield f"{field}.{index}.type: unknown setup step {step.type!r}{nearest(step.type, SETUP_STEPS)}"


def _evaluator_problems(task: Task) -> Iterator[str]:
    evaluator = task.evaluator
    yield from _setup_problems("evaluator.postconfig", evaluator.postconfig)
    try:
        terms = evaluator.terms()
    except ValueError as error:
        yield f"evaluator.{error}"
        return
    if len(terms) > MAX_METRICS:
        yield f"evaluator.func: {len(terms)} metrics; {MAX_METRICS} are the most"
    for index, term in enumerate(terms[:MAX_METRICS]):
        at = f".{index}" if isinstance(evaluator.func, list) else ""
        if term.func == INFEASIBLE:
            yield f"evaluator.func{at}: {INFEASIBLE!r} stands alone, not in a list"
        elif term.func not in METRICS:
            yield f"evaluator.func{at}: unknown metric {term.func!r:.{MAX_NAME}}{nearest(term.func, METRICS)}"
        if term.result is None:
            yield f"evaluator.result{at}: missing; say what {term.func!r} is given"
        for name, getter in (("result", term.result), ("expected", term.expected)):
            if getter is not None:
                yield from _getter_problems(f"evaluator.{name}{at}", getter)


def _getter_problems(field: str, getter: dict[str, Any]) -> Iterator[str]:
    kind = getter.get("type")
    if not isinstance(kind, str):
        yield f"{field}.type: missing; name a getter"
    elif kind not in GETTERS:
        yield f"{field}.type: unknown getter {kind!r:.{MAX_NAME}}{nearest(kind, GETTERS)}"
