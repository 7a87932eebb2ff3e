"""The `arpo` command: parse, call, print.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 stopped by a signal, 75 `train` or `evaluate` stopped by SIGTERM:
run it again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arpo.config.load import load_config, parse_arguments
from arpo.config.model import Config
from arpo.console import Failed, run_app, until_signal
from arpo.env_commands import env_app
from arpo.evaluation_commands import compare_command, evaluate_command
from arpo.imports import quick_imports
from arpo.protocol.problems import ConfigError
from arpo.replay_commands import replay_app
from arpo.telemetry import names
from arpo.telemetry.export import exporting
from arpo.trace_command import trace_command
from arpo.trainer.progress import Reporter
from arpo.tunnel_commands import tunnel_app

if TYPE_CHECKING:
    from arpo.trainer.doctor import Check

app = typer.Typer(
    name="arpo",
    help="Train GUI agents by reinforcement learning on real desktops.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tasks_app = typer.Typer(
    help="Look at task sets: OSWorld's own or any folder in its format.", no_args_is_help=True
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(env_app, name="env")
app.add_typer(replay_app, name="replay")
app.add_typer(tunnel_app, name="tunnel")
app.command("trace")(trace_command)

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="config=FILE [key=value]...",
        help="A configuration file and overrides, e.g. config=configs/smoke_cpu.yaml trainer.max_steps=5",
    ),
]
SuiteOption = Annotated[str, typer.Option("--suite", "-s", help="Built-in suite or folder with examples/.")]
SetOption = Annotated[
    str, typer.Option("--set", help="Name or path of a set file {domain: [ids]}; `all`: every task.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="A JSON document on stdout.")]
CheckpointOption = Annotated[str, typer.Option(help="latest, best (highest success in training) or step-N.")]


class DType(StrEnum):
    """Type of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


# no markup: tasks, paths and reasons may hold brackets
out = Console(highlight=False, markup=False)


def _load(arguments: list[str]) -> Config:
    path, overrides = parse_arguments(arguments)
    return load_config(path, overrides)


def _checked(arguments: list[str], *, training: bool = False) -> Config:
    """The configuration, after everything that can be refused before a model is loaded."""
    from arpo.trainer.doctor import preflight, raise_if_failed

    config = _load(arguments)
    raise_if_failed(preflight(config, hardware=True, training=training))
    return config


def _followed(arguments: list[str]) -> bool:
    """Under torchrun every process is this command: all but the first follow it, here, to the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
        return False
    with quick_imports():
        from arpo.trainer.ranks import follow_leader

    follow_leader(_load(arguments).model.device)
    return True


def _reporter() -> Reporter:
    """Its clock starts before the heavy imports, so that it shows what the person waits for."""
    reporter = Reporter()
    reporter.say("loading torch and transformers")
    return reporter


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(until_signal(work))


@app.command()
def train(arguments: Arguments) -> None:
    """Train: rollouts, replay, GRPO steps, checkpoints, until trainer.max_steps. Resumes a run of the same name.

    Trains on learner.ranks processes of this machine; under torchrun on those that it has started.
    """
    if _followed(arguments):
        return
    from arpo.trainer.stop import Stop, stoppable_at_once, until_stopped

    with stoppable_at_once():
        config = _checked(arguments, training=True)
        reporter = _reporter()
        with quick_imports():
            from arpo.trainer.summary import print_summary
            from arpo.trainer.train import train as run_training

        stop = Stop(config.trainer.grace_s)
        with exporting(names.TRAINER, reporter.say):
            summary = asyncio.run(until_stopped(run_training(config, reporter, stop), stop))
    print_summary(summary, out)
    if summary.missing:
        raise Failed("the run ended, but not every stage happened (see above)")


@app.command()
def imitate(arguments: Arguments) -> None:
    """Record the tasks' demonstrations on the desktops and imitate them; `arpo train` of the same run goes on."""
    if _followed(arguments):
        return
    config = _checked([*arguments, "imitation.enabled=true"], training=True)
    reporter = _reporter()
    with quick_imports():
        from arpo.trainer.train import warm_start

    with exporting(names.TRAINER, reporter.say):
        result, checkpoint = _run(warm_start(config, reporter))
    out.print(
        f"{result.demonstrations} demonstrations, {result.steps} steps: sampled whole with probability "
        f"{result.probability_before:.2g} → {result.probability_after:.2g}; checkpoint {checkpoint}"
    )


@app.command()
def evaluate(
    arguments: Arguments,
    label: Annotated[str, typer.Option(help="Name of the result under <run>/evaluations/.")] = "evaluate",
    checkpoint: Annotated[
        str,
        typer.Option(help="latest, best (highest success in training), step-N, or none: model.path itself."),
    ] = "latest",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what is recorded under the label.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a policy on tasks.eval_set: the run's checkpoint, model.path when it has none, or a model server.

    Each task is run trainer.eval_repeats times. Episodes are recorded as they end: the same command goes on where it was
    stopped, and prints the result of what is complete. With engine.kind=openai the policy is engine.openai.model at
    engine.openai.url.
    """
    evaluate_command(_checked(arguments), label, checkpoint, fresh=fresh, as_json=as_json)


@app.command()
def compare(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, <run.dir>/<run.name>.", show_default=False)
    ],
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="Label of one of its evaluations.", show_default=False)
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="SECOND",
            help="Another label, or the .json file of an evaluation anywhere.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations task by task: SECOND minus FIRST, with 95 % confidence intervals.

    How much noise costs a policy:

        arpo evaluate config=FILE tasks.suite=CLEAN --label clean

        arpo evaluate config=FILE tasks.suite=NOISY --label noisy

        arpo compare RUN clean noisy

    Tasks are paired by domain and id; those of one side alone are listed and not counted.
    """
    compare_command(run, first, second, as_json=as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    folder: Annotated[Path, typer.Argument(help="Where the model goes; absent or empty.")],
    checkpoint: CheckpointOption = "latest",
    dtype: Annotated[
        DType | None, typer.Option(help="Type of the weights; unset: as they were trained.")
    ] = None,
) -> None:
    """Write a checkpoint as an ordinary Hugging Face model folder, LoRA adapters merged."""
    reporter = _reporter()
    with quick_imports():
        from arpo.trainer.export import export_run

    out.print(export_run(run, folder, checkpoint, dtype.value if dtype else None, reporter), soft_wrap=True)


@app.command()
def doctor(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="config=FILE [key=value]...",
            help="A configuration file and overrides; with --cluster they may be left out.",
            show_default=False,
        ),
    ] = None,
    hardware: Annotated[
        bool, typer.Option(help="Look at this machine too: GPUs, programs, namespaces.")
    ] = True,
    memory: Annotated[
        bool, typer.Option("--memory", help="Show what the memory is predicted to hold.")
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Look at the Kubernetes cluster of the present context instead."),
    ] = False,
    namespace: Annotated[
        str | None, typer.Option(help="--cluster: namespace of the release. Default: the context's.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="--cluster: what the chart's objects are called: `arpo` for arpo-env.")
    ] = "arpo",
    gpu_resource: Annotated[str, typer.Option(help="--cluster: GPU resource.")] = "nvidia.com/gpu",
    kvm_resource: Annotated[
        str | None, typer.Option(help="--cluster: KVM resource that the desktops need, if they do.")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option(help="--cluster: checkpoints.storageClass, if it is set.")
    ] = None,
) -> None:
    """Preflight: refuse what cannot work before a model is loaded, and name the fix."""
    from arpo.trainer.doctor import preflight, raise_if_failed
    from arpo.trainer.fitting import memory_table

    if cluster:
        from arpo.trainer.cluster import Wanted, look

        gpus = _load(arguments).hardware.gpus if arguments else 0
        _show(found := look(Wanted(name, namespace, gpus, gpu_resource, kvm_resource, storage_class)))
        raise_if_failed(found)
        return
    if not arguments:
        raise ConfigError("nothing to check; fix: arpo doctor config=FILE [key=value]..., or --cluster")
    config = _load(arguments)
    if memory and (table := memory_table(config)) is not None:
        out.print(table)
    checks = preflight(config, hardware=hardware)
    _show(checks)
    raise_if_failed(checks)


def _show(checks: Sequence[Check]) -> None:
    for check in checks:
        out.print("ok" if check.ok else "no", style="green" if check.ok else "red", end="  ")
        out.print(f"{check.name}: {check.detail}" if check.detail else check.name, soft_wrap=True)


@tasks_app.command("list")
def tasks_list(
    suite: SuiteOption = "local",
    task_set: SetOption = "all",
    provider: Annotated[str | None, typer.Option(help="Only tasks that run on this provider.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list on stdout.")] = False,
) -> None:
    """List tasks: id, domain, instruction, file, providers."""
    from arpo.tasks.report import task_rows
    from arpo.tasks.sets import load_suite

    rows = task_rows(load_suite(suite), set_name=task_set, provider=provider)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("domain", "id", "instruction", "providers")
    for row in rows:
        table.add_row(
            str(row["domain"]), str(row["id"]), str(row["instruction"]), ", ".join(row["providers"])
        )
    out.print(table)


@tasks_app.command("validate")
def tasks_validate(suite: SuiteOption = "local") -> None:
    """Check a suite: task files, demonstrations, sets; each problem is one line with file, field and reason."""
    from arpo.tasks.report import suite_problems
    from arpo.tasks.sets import load_suite

    loaded = load_suite(suite)
    problems = suite_problems(loaded)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise ConfigError(f"{len(problems)} problems in suite {suite}; fix: see the lines above")
    typer.echo(f"suite {suite}: {len(loaded.paths())} tasks and {len(loaded.sets())} sets are valid")


@tasks_app.command("demo")
def tasks_demo(
    suite: SuiteOption = "local",
    task_set: SetOption = "all",
    task: Annotated[str | None, typer.Option(help="Only the task with this id.")] = None,
    provider: Annotated[str, typer.Option(help="Provider of the desktops.")] = "xvfb",
    desktops: Annotated[int, typer.Option(min=1, help="Desktops at once.")] = 2,
    sandbox: Annotated[str, typer.Option(help="xvfb: auto or none.")] = "auto",
    screenshots: Annotated[
        Path | None, typer.Option(help="Folder that gets a picture after every turn.")
    ] = None,
) -> None:
    """Play demonstrations on desktops and print the evaluators' scores; fails unless every one scores 1.0."""
    config = load_config(
        None, [f"env.provider={provider}", f"env.desktops={desktops}", f"env.sandbox={sandbox}"]
    )
    from arpo.trainer.demo import play_demonstrations

    results = _run(
        play_demonstrations(config, suite, task_set, only=task, screenshots=screenshots, reporter=Reporter())
    )
    table = Table("domain", "id", "score", "seconds", "problem")
    for result in results:
        score = "–" if result.score is None else f"{result.score:g}"
        table.add_row(result.domain, result.task_id, score, f"{result.seconds:.1f}", result.problem)
    out.print(table)
    if failed := [result.task_id for result in results if result.score != 1.0]:
        raise Failed(f"{len(failed)} of {len(results)} demonstrations did not score 1.0")


def main() -> None:
    """Entry point of `arpo`."""
    run_app(app)


if __name__ == "__main__":
    main()
