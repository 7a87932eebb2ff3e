"""Where a run's metrics go besides `metrics.jsonl`: TensorBoard, and services that people watch runs with.

Each package is imported when its tracker is opened, never before.
"""

from arpo.trainer.trackers.base import State, Tracker, TrackerStart
from arpo.trainer.trackers.lanes import Trackers, tracking

__all__ = ["State", "Tracker", "TrackerStart", "Trackers", "tracking"]
