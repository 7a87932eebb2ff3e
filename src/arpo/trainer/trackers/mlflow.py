"""MLflow. Without MLFLOW_TRACKING_URI a run is kept in a database of its own, `<run>/mlflow/mlflow.db`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from arpo.trainer.trackers.base import PROJECT, State, TrackerStart, flat

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_PARAMS_A_BATCH = 100
_PARAM_CHARACTERS = 6000


class Mlflow:
    """One run under one id, whatever often it is started; its parameters are the configuration that it began with.

    What a resumed run abandoned stays: MLflow takes nothing back. The latest value at a step is the one that counts.
    """

    def __init__(self, start: TrackerStart) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        folder = start.root / "mlflow"
        folder.mkdir(exist_ok=True)
        own = f"sqlite:///{folder.absolute()}/mlflow.db"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or own)
        run_id = start.run_id("mlflow")
        if run_id is None:
            run_id = start.keep_run_id("mlflow", self._create(start))
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def _create(self, start: TrackerStart) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(experiment_id, run_name=start.name).info.run_id
        params = [Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in flat(start.config)]
        for first in range(0, len(params), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_A_BATCH])
        return run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One batch, stored when this returns."""
        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def close(self, state: State) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run_id, _STATUS[state])
