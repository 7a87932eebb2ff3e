"""SwanLab. Without SWANLAB_API_KEY or SWANLAB_MODE a run is kept offline, under `<run>/swanlab/`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import swanlab

from arpo.trainer.trackers.base import PROJECT, State, TrackerStart

_STATE: dict[State, Literal["success", "aborted", "crashed"]] = {
    "finished": "success",
    "stopped": "aborted",
    "failed": "crashed",
}


class Swanlab:
    """One run under one id, whatever often it is started; offline, every start has a folder of its own with that id.

    What a resumed run abandoned stays.
    """

    def __init__(self, start: TrackerStart) -> None:
        mode = "online" if os.environ.get("SWANLAB_API_KEY") else "offline"
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            name=start.name,
            id=start.run_id("swanlab") or start.new_run_id("swanlab"),
            resume="allow",
            log_dir=str(start.root / "swanlab"),
            config=dict(start.config),
            mode=os.environ.get("SWANLAB_MODE", mode),
            # it shall not catch what is printed
            settings=swanlab.Settings(terminal={"proxy_type": "none"}),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; it is uploaded in the background."""
        self._run.log(dict(metrics), step=step)

    def close(self, state: State) -> None:
        """Upload what is left."""
        self._run.finish(state=_STATE[state])
