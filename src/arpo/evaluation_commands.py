"""`arpo evaluate` and `arpo compare`: parse, call, print."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from arpo.config.model import Config
from arpo.console import EXIT_INTERRUPTED, EXIT_RESUME, Failed, Stopped, Terminated, until_signal
from arpo.protocol.problems import ConfigError
from arpo.telemetry import names
from arpo.telemetry.export import exporting
from arpo.trainer.progress import Reporter

if TYPE_CHECKING:
    from arpo.evaluation.result import EvaluationResult

# no markup: names may hold brackets
out = Console(highlight=False, markup=False)


def evaluate_command(config: Config, label: str, checkpoint: str, *, fresh: bool, as_json: bool) -> None:
    """Evaluate, and print the result. Raises Stopped when a signal ends it: the same command goes on."""
    from arpo.evaluation.report import result_table
    from arpo.trainer.evaluate import evaluate_run

    try:
        reporter = Reporter()
        with exporting(names.TRAINER, reporter.say):
            result = asyncio.run(until_signal(evaluate_run(config, reporter, label, checkpoint, fresh=fresh)))
    except Terminated:
        raise Stopped("terminated: the same command goes on", EXIT_RESUME) from None
    except KeyboardInterrupt:
        raise Stopped("stopped: the same command goes on", EXIT_INTERRUPTED) from None
    if as_json:
        path = config.run.dir / config.run.name / "evaluations" / f"{label}.json"
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        out.print(result_table(result))
        if result.faults:
            faults = ", ".join(f"{code} {n}" for code, n in sorted(result.faults.items()))
            out.print(f"environment faults: {faults}", soft_wrap=True)
    if result.lost:
        raise Failed(
            f"{result.lost} episodes were lost to environment faults; the result holds the others only; "
            "the same command runs them again"
        )


def compare_command(run: Path, first: str, second: str, *, as_json: bool) -> None:
    """Compare two evaluations task by task, and print how they differ."""
    from arpo.evaluation.comparison import compare
    from arpo.evaluation.report import changed_tasks_table, comparison_table

    comparison = compare(_result(run, first), _result(run, second))
    if as_json:
        typer.echo(
            json.dumps(
                {"first": first, "second": second, **comparison.record()}, indent=2, ensure_ascii=False
            )
        )
    elif comparison.all is not None:
        out.print(comparison_table(comparison, first, second))
        if changed := changed_tasks_table(comparison, first, second):
            out.print(changed)
        for name, only in ((first, comparison.only_first), (second, comparison.only_second)):
            if only:
                out.print(f"only in {name}, not compared: {', '.join(only)}", soft_wrap=True)
    if comparison.all is None:
        raise Failed(f"{first} and {second} have no task with a valid episode in common")


def _result(run: Path, name: str) -> EvaluationResult:
    """The result of an evaluation of the run, or in a result document anywhere."""
    from arpo.evaluation.result import EvaluationResult

    folder = run / "evaluations"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    try:
        return EvaluationResult.of_record(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        there = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; fix: the label of a finished evaluation of {run} ({there}), "
            "or the path of a result document"
        ) from error
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no result of an evaluation; fix: evaluate again, with --fresh"
        ) from error
