"""Does replay of successes help where success is rare? ARPO against GRPO from the same weights, with equal rollouts.

    python benchmarks/arpo_vs_grpo.py [--seeds 5] [--steps 120] [--arms arpo grpo] [--out FOLDER]
    python benchmarks/arpo_vs_grpo.py --plot-only docs/data/arpo_vs_grpo.json --out FOLDER

A policy of 0.7 M parameters learns to enter six people's codes of three to five keys on simulated calculators, one key
a turn. By imitation it knows how to act, and for every key two candidates; nothing tells it which one is right but a
score of 1 at the very end. Every arm gets a group of episodes of every task in every step; the arms differ in the
replay section alone:

    arpo                  a stored success takes the place of a failure in a group that failed as a whole
    arpo-no-importance    the same without importance weights on replayed tokens, as in the published code
    grpo                  no replay

--out keeps the warm start and one file a run: started again, the benchmark goes on with the runs that are missing.
It leaves arpo_vs_grpo.json (settings, every run, the machine) and arpo_vs_grpo.png, and prints final successes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from learning_plot import interval, plot

NAME = "arpo_vs_grpo"
WINDOW = 10
"""Steps whose episodes make one point of a curve."""
ARMS = ("arpo", "arpo-no-importance", "grpo")

Runs = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Arm → seeds → records of a run (`learning_runs.train`)."""


def main() -> None:
    """Run what is missing, then draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each arm (default 5)")
    parser.add_argument("--steps", type=positive, default=120, help="training steps of a run (default 120)")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of all arms (default 3e-4)")
    parser.add_argument(
        "--group-size", type=positive, default=2, help="episodes of a task in a step (default 2)"
    )
    parser.add_argument(
        "--imitation-steps", type=positive, default=240, help="length of the warm start (default 240)"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME, help=f"default runs/{NAME}")
    parser.add_argument(
        "--plot-only", type=Path, metavar="JSON", help="draw the picture of an earlier result"
    )
    options = parser.parse_args()

    if options.plot_only:
        result = json.loads(options.plot_only.read_text())
    else:
        result = measure(options)
        write(options.out / f"{NAME}.json", result)
    draw(result, options.out / f"{NAME}.png")
    for arm, runs in result["runs"].items():
        final = interval([success(run)[-1] for run in runs])
        print(f"{arm:20} success {final} after {len(runs[0]) - 1} steps, {len(runs)} seed(s)")
    print(options.out / f"{NAME}.png")


def positive(text: str) -> int:
    """An integer above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that `--out` does not have yet; returns all of them."""
    # only this needs torch; a picture is drawn without it
    from learning_runs import Settings, train, warm_start

    settings = Settings(
        steps=options.steps,
        group_size=options.group_size,
        lr=options.lr,
        imitation_steps=options.imitation_steps,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    keep_settings(options.out / "settings.json", asdict(settings))
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started:6.1f}s] {message}", flush=True)

    model = asyncio.run(warm_start(options.out, settings, say))
    runs: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            path = options.out / "runs" / f"{arm}-{seed}.json"
            if not path.exists():
                write(path, asyncio.run(train(model, options.out, arm, seed, settings, say)))
            runs[arm].append(json.loads(path.read_text()))
    return {"settings": asdict(settings), "machine": machine(), "runs": runs}


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix runs of different settings in one folder."""
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(
            f"{path.parent} holds runs of other settings ({path.read_text()}); fix: choose another --out"
        )
    write(path, settings)


def write(path: Path, document: object) -> None:
    """Write JSON so that a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document) + "\n")
    part.replace(path)


def machine() -> str:
    """Where it was measured, in words."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.machine()}, {os.cpu_count()} cores, no GPU, OMP_NUM_THREADS={threads}"


def success(run: Sequence[Mapping[str, Any]]) -> list[float]:
    """A run's success at every step: of the fresh episodes of that step and the `WINDOW` - 1 before it.

    Episodes of a step are sampled before its update, with seeds that all arms share; replayed ones are not among them.
    """
    fresh = [record["success"] for record in run[1:]]
    return [fmean(fresh[max(0, step - WINDOW) : step]) for step in range(1, len(fresh) + 1)]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The curves of all arms."""
    runs: Runs = result["runs"]
    curves = {arm: [success(run) for run in seeds] for arm, seeds in runs.items()}
    tasks = len(next(iter(runs.values()))[0][0]["as_shown"])
    episodes = tasks * result["settings"]["group_size"]
    plot(
        curves,
        path,
        title=f"Success of the episodes of the last {WINDOW} steps (band: 95 % interval over seeds)",
        across=f"training step ({episodes} episodes each)",
    )


if __name__ == "__main__":
    main()
