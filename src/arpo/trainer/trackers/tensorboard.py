"""TensorBoard: event files under `<run>/tensorboard/`, one for every start of the run."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from arpo.trainer.trackers.base import State, TrackerStart


class TensorBoard:
    """Writes scalars. A run that goes on makes readers drop every event from its step on, and writes that step's again."""

    def __init__(self, start: TrackerStart) -> None:
        folder = start.root / "tensorboard"
        again = folder.exists()
        self._writer = SummaryWriter(folder, purge_step=start.step if again else None)
        if again and start.standing:
            self.log(start.step, start.standing)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Scalars of a step, on the disk when this returns."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, state: State) -> None:
        """Close the file; TensorBoard has no word for how a run ended."""
        self._writer.close()
