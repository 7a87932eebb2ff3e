"""Metrics, for code that measures: next to nothing while nobody exports. `arpo.telemetry.export` decides.

Invariant: nothing here imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from arpo.telemetry.names import Attribute, Metric

Labels = Mapping[Attribute, str]


class Backend(Protocol):
    """Where metrics go."""

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        """Observe a histogram's value, add to a counter, or set a gauge."""

    def watch(self, metric: Metric, label: Attribute, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask for a gauge's values by label whenever metrics are sent."""


_backend: Backend | None = None


def use(backend: Backend | None) -> None:
    """Send the metrics of this process there from now on; None: nowhere."""
    global _backend
    _backend = backend


def record(metric: Metric, value: float, labels: Labels | None = None) -> None:
    """Observe a histogram's value, add to a counter, or set a gauge."""
    if _backend is not None:
        _backend.record(metric, value, labels or {})


def watch(metric: Metric, label: Attribute, count: Callable[[], Mapping[str, int]]) -> None:
    """Ask for a gauge's values by label whenever metrics are sent; the callable is asked in another thread."""
    if _backend is not None:
        _backend.watch(metric, label, count)
