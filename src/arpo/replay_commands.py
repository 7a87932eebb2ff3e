"""`arpo replay`: look at the successes that a run has stored, take them out, put others in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from arpo.replay.listing import Listed, StoredRun

replay_app = typer.Typer(
    help="Look at the successful trajectories that a run has stored, export and import them.",
    no_args_is_help=True,
)
# no markup: instructions and names may hold brackets
out = Console(highlight=False, markup=False)

_SHOWN_HASH = 8

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, <run.dir>/<run.name>.", show_default=False)
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The data set's folder.", show_default=False)
]
TaskOption = Annotated[str | None, typer.Option("--task", help="Only of the task with this id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="A JSON document on stdout.")]


@replay_app.command("list")
def list_stored(run: RunArgument, task: TaskOption = None, as_json: JsonOption = False) -> None:
    """List what the newest checkpoint's buffer holds, and what was imported and waits for the next start."""
    listed = _stored_run(run).listed(task)
    if as_json:
        typer.echo(json.dumps([_row(one) for one in listed], indent=2))
        return
    table = Table()
    for column in ("id", "task", "score", "version", "turns", "tokens", "sampler", "where"):
        table.add_column(column, no_wrap=column != "task", overflow="fold")
    for one in listed:
        stored = one.stored
        table.add_row(
            stored.sha256[:_SHOWN_HASH],
            f"{stored.domain}/{stored.task_id}",
            f"{stored.score:g}",
            str(stored.policy_version),
            str(stored.turns),
            str(stored.tokens),
            stored.sampler,
            one.where,
        )
    out.print(table)


@replay_app.command()
def show(
    run: RunArgument,
    name: Annotated[
        str, typer.Argument(metavar="ID", help="Beginning of the id, or the episode.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Show one stored trajectory: the instruction, and every turn's screenshot, text and actions."""
    stored_run = _stored_run(run)
    with stored_run.folder.lock(shared=True):
        one = stored_run.find(name)
        trajectory = stored_run.folder.rows.get(one.stored.sha256)
    screenshot = stored_run.screenshots.path
    if as_json:
        turns = [
            {**turn.model_dump(mode="json"), "screenshot": str(screenshot(turn.observation))}
            for turn in trajectory.turns
        ]
        document = {**_row(one), "instruction": trajectory.instruction, "turns": turns}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    out.print(f"{trajectory.domain}/{trajectory.task_id}: {trajectory.instruction}", style="bold")
    out.print(
        f"{one.stored.sha256}\nepisode {trajectory.episode_id}, score {one.stored.score:g}, "
        f"policy version {one.stored.policy_version}, {one.stored.tokens} tokens, "
        f"sampled by a {one.stored.sampler}, in the {one.where}",
        soft_wrap=True,
    )
    for number, turn in enumerate(trajectory.turns, start=1):
        out.print(f"\nturn {number}  {screenshot(turn.observation)}", style="dim", soft_wrap=True)
        out.print(turn.text, soft_wrap=True)
        for action in turn.actions:
            out.print(f"  {action.model_dump_json()}", soft_wrap=True)
        if turn.format_error:
            out.print(f"  no action: {turn.format_error}", style="red", soft_wrap=True)


@replay_app.command("export")
def export_stored(
    run: RunArgument,
    folder: FolderArgument,
    task: TaskOption = None,
    demonstrations: Annotated[
        bool,
        typer.Option(
            "--demonstrations", help="The demonstrations recorded for the run's warm start instead."
        ),
    ] = False,
) -> None:
    """Write a run's stored successes as a data set, for `arpo replay import` and `imitation.dataset`."""
    from arpo.replay.exchange import export_run

    manifest = export_run(_stored_run(run), folder, task=task, demonstrations=demonstrations)
    out.print(
        f"{folder}: {len(manifest.trajectories)} trajectories, {len(manifest.screenshots)} screenshots",
        soft_wrap=True,
    )


@replay_app.command("import")
def import_dataset(run: RunArgument, folder: FolderArgument) -> None:
    """Seed a run, new or not, with a data set; `arpo train` of that run takes it in when it starts next."""
    from arpo.replay.dataset import Dataset
    from arpo.replay.exchange import import_run

    result = import_run(run, Dataset(folder))
    there = f", {result.present} were there already" if result.present else ""
    out.print(f"{run}: {result.added} trajectories imported{there}", soft_wrap=True)


def _stored_run(root: Path) -> StoredRun:
    from arpo.replay.listing import StoredRun

    return StoredRun.existing(root)


def _row(one: Listed) -> dict[str, object]:
    return {**one.stored.model_dump(mode="json"), "where": one.where}
