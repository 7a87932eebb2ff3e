"""Files that belong to a suite: how a task names them, and where they may come from.

A task names a file of a built-in suite as `suite:<name>/<path inside the suite>`; both sides of the wire have
the same package, so the env-server opens its own copy. The files of any other suite travel inside the task as
`data:` URLs (`inline_files`).

Invariant: a `suite:` URL never leads outside its suite's folder, so a task reads no other file of the host.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arpo.protocol.problems import ConfigError

SCHEME = "suite:"
MAX_INLINE_BYTES = 5 * 2**20
"""Most that the files inside one task may weigh together. As base64, with the rest of a task (1 MiB), they fit into the
8 MiB that an env-server reads of a request."""

_SUITES = Path(__file__).parent / "suites"


def builtin_suites() -> dict[str, Path]:
    """Name → root folder of the suites in this package."""
    return {examples.parent.name: examples.parent for examples in sorted(_SUITES.glob("*/examples"))}


def resolve_suite_url(url: str, roots: Mapping[str, Path]) -> Path:
    """The file that a `suite:<name>/<path>` URL names.

    Raises ConfigError for an unknown suite, a path outside the suite, or a file that is not there.
    """
    name, _, inside = url.removeprefix(SCHEME).partition("/")
    if name not in roots:
        known = ", ".join(sorted(roots)) or "none"
        raise ConfigError(f"{url}: no suite {name!r} here; known: {known}")
    root = roots[name].resolve()
    file = (root / inside).resolve()
    if not file.is_relative_to(root):
        raise ConfigError(f"{url}: leads outside the suite")
    if not file.is_file():
        raise ConfigError(f"{url}: no such file in suite {name!r}")
    return file


def inline_files(document: dict[str, Any], name: str, root: Path) -> dict[str, Any]:
    """The task's JSON with every `suite:<name>/...` replaced by a `data:` URL of the file's content.

    Raises ConfigError when a file is missing or the files weigh more than `MAX_INLINE_BYTES`.
    """
    total = 0

    def inlined(text: str) -> str:
        nonlocal total
        if not text.startswith(f"{SCHEME}{name}/"):
            return text
        content = resolve_suite_url(text, {name: root}).read_bytes()
        total += len(content)
        if total > MAX_INLINE_BYTES:
            raise ConfigError(
                f"{text}: the task's files are larger than {MAX_INLINE_BYTES >> 20} MiB; serve them over HTTP"
            )
        return "data:;base64," + base64.b64encode(content).decode()

    return {key: _map_strings(value, inlined) for key, value in document.items()}


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value
