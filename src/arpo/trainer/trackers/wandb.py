"""Weights & Biases. Without WANDB_API_KEY or WANDB_MODE a run is kept offline, under `<run>/wandb/`."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from arpo.trainer.trackers.base import PROJECT, State, TrackerStart


class Wandb:
    """One run under one id, whatever often it is started. Metrics are drawn over `step`.

    What a resumed run abandoned stays: wandb takes nothing back. The later point at a step is the one that counts.
    """

    def __init__(self, start: TrackerStart) -> None:
        run_id = start.run_id("wandb") or start.new_run_id("wandb")
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            id=run_id,
            resume="allow",
            dir=start.root,
            config=dict(start.config),
            mode=None if "WANDB_MODE" in os.environ else mode,
            # it shall neither speak between the lines of the live display nor catch what is printed
            settings=wandb.Settings(silent=True, console="off", allow_val_change=True),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; it is uploaded in the background."""
        self._run.log({"step": step, **metrics})

    def close(self, state: State) -> None:
        """Upload what is left."""
        self._run.finish(exit_code=0 if state == "finished" else 1)
