"""`arpo trace`: one episode of a run as a waterfall, from its record; no collector is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from arpo.protocol.problems import ConfigError

if TYPE_CHECKING:
    from arpo.trajectory import Trajectory
    from arpo.trajectory.waterfall import Bar

# no markup: notes and names may hold brackets
out = Console(highlight=False, markup=False)

LATEST = "latest"
_STYLES = {"reset": "cyan", "generate": "magenta", "step": "green", "evaluate": "yellow"}
_NARROW = 24
_NOTES = 32
_COLUMNS = 14 + 2 + 2 * (7 + 2) + 2
"""Characters that names, times and the space between columns take."""
_PARTS = "▏▎▍▌▋▊▉"


def trace_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, <run.dir>/<run.name>.", show_default=False)
    ],
    episode: Annotated[
        str,
        typer.Argument(
            metavar="EPISODE",
            help="The id of an episode, as in trajectories/ or faults.jsonl, or the only one's beginning; "
            f"`{LATEST}`: the one that began last.",
        ),
    ] = LATEST,
) -> None:
    """Show what an episode waited for, as a waterfall: its operations, and the env-server's phases inside them.

    Works for every run, traced or not. A traced episode's trace id is shown for Jaeger or Grafana.
    """
    _print(_found(run, episode))


def _found(run: Path, wanted: str) -> Trajectory:
    """The latest record of the episode. Raises ConfigError."""
    from arpo.trajectory import Trajectory

    lines: dict[str, tuple[float, bytes]] = {}
    for episode_id, began, line in _recorded(run):
        if wanted == LATEST or episode_id.startswith(wanted):
            lines[episode_id] = max(lines.get(episode_id, (0.0, b"")), (began, line))
    if wanted == LATEST and lines:
        newest = max(lines, key=lambda episode_id: lines[episode_id][0])
        lines = {newest: lines[newest]}
    if wanted in lines:
        lines = {wanted: lines[wanted]}
    if not lines:
        raise ConfigError(
            f"{run} has no record of episode {wanted}; fix: an id from its trajectories/ or evaluations/"
        )
    if len(lines) > 1:
        some = ", ".join(sorted(lines)[:4])
        raise ConfigError(f"{len(lines)} episodes begin with {wanted}: {some}, ...; fix: a whole id")
    ((_, line),) = lines.values()
    return Trajectory.model_validate_json(line)


def _recorded(run: Path) -> Iterator[tuple[str, float, bytes]]:
    """Id, beginning and line of every episode on record; a line that a kill has cut short is nobody's."""
    for path in sorted([*run.glob("trajectories/*.jsonl"), *run.glob("evaluations/*/episodes.jsonl")]):
        with path.open("rb") as file:
            for line in file:
                try:
                    document = json.loads(line)
                    yield str(document["episode_id"]), float(document["started_at"]), line
                except (ValueError, KeyError, TypeError):
                    continue


def _print(trajectory: Trajectory) -> None:
    from arpo.trajectory.waterfall import shares, waterfall

    score = "none" if trajectory.score is None else f"{trajectory.score:g}"
    out.print(
        f"{trajectory.episode_id}: {trajectory.domain}/{trajectory.task_id}", style="bold", soft_wrap=True
    )
    out.print(
        f"{len(trajectory.turns)} turns, score {score}, policy version {trajectory.policy_version}, "
        f"trace {trajectory.trace_id or 'not exported'}",
        soft_wrap=True,
    )
    bars = waterfall(trajectory)
    notes = max(len(bar.note) for bar in bars)
    free = out.width - _COLUMNS
    width = max(_NARROW, free - min(notes, _NOTES))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("start s", justify="right")
    table.add_column("took s", justify="right")
    table.add_column(
        Text.assemble("0", " " * (width - 1 - len(_axis(trajectory))), _axis(trajectory)), no_wrap=True
    )
    table.add_column("", max_width=max(free - width, _NARROW // 2), overflow="ellipsis", no_wrap=True)
    style = "bold"
    for bar in bars:
        if bar.depth < 2:
            style = _STYLES.get(bar.name, "bold")
        shown = "red" if bar.failed else f"dim {style}" if bar.depth == 2 else style
        table.add_row(
            Text("  " * bar.depth + bar.name, shown),
            f"{bar.start_s:.3f}",
            f"{bar.seconds:.3f}",
            Text(_drawn(bar, trajectory.duration_s, width), shown),
            Text(bar.note, "red" if bar.failed else ""),
        )
    out.print(table)
    if not trajectory.operations:
        out.print("the record is of a version that kept no operations; there is nothing more to draw")
        return
    spent = shares(trajectory)
    total = trajectory.duration_s or 1.0
    out.print(
        ", ".join(f"{name} {seconds:.2f} s ({seconds / total:.0%})" for name, seconds in spent.items()),
        soft_wrap=True,
    )


def _axis(trajectory: Trajectory) -> str:
    return f"{trajectory.duration_s:.3f} s"


def _drawn(bar: Bar, total_s: float, width: int) -> str:
    """A bar on a line of so many characters; what took any time is seen."""
    scale = width / total_s if total_s else 0.0
    start = min(int(bar.start_s * scale), width - 1)
    eighths = min(round((bar.start_s + bar.seconds) * scale * 8), width * 8) - start * 8
    whole, part = divmod(max(eighths, 1), 8)
    return " " * start + "█" * whole + (_PARTS[part - 1] if part else "")
