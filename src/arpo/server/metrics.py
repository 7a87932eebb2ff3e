"""What the env-server counts, as Prometheus reads it and as it is exported by OTLP.

Invariant: every operation is counted once, with how it ended; a number that can be read off the sessions or the
pool is read there at the time of asking, never kept twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arpo.telemetry import metrics as otlp
from arpo.telemetry import names
from arpo.telemetry.names import BUCKETS_S

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """The metrics of one env-server; a registry of its own, so that two servers in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._operations = Histogram(
            "arpo_operation_seconds",
            "Desktop operations by how they ended: `ok`, `cancelled` or the code of the problem.",
            ("operation", "outcome"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._phases = Histogram(
            "arpo_phase_seconds",
            "What operations spend their time on.",
            ("operation", "phase"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._problems = PrometheusCounter(
            "arpo_problems",
            "Problems answered, by code and by who is to blame.",
            ("code", "fault"),
            registry=self._registry,
        )
        self._repeats = PrometheusCounter(
            "arpo_step_repeats",
            "Steps sent again that were answered without touching the desktop.",
            registry=self._registry,
        )
        self._reaped = PrometheusCounter(
            "arpo_sessions_reaped",
            "Sessions ended because their clients were silent.",
            registry=self._registry,
        )

    def operation_ended(
        self, operation: str, outcome: str, seconds: float, phases: Mapping[str, float]
    ) -> None:
        """A reset, step or evaluation came to its end."""
        self._operations.labels(operation, outcome).observe(seconds)
        otlp.record(names.SERVER_OPERATION, seconds, {names.OPERATION: operation, names.OUTCOME: outcome})
        for name, spent in phases.items():
            self._phases.labels(operation, name).observe(spent)
            otlp.record(names.SERVER_PHASE, spent, {names.OPERATION: operation, names.PHASE: name})

    def problem_answered(self, code: str, fault: str) -> None:
        """A request was answered with a problem."""
        self._problems.labels(code, fault).inc()
        otlp.record(names.SERVER_PROBLEMS, 1, {names.FAULT_CODE: code, names.FAULT: fault})

    def step_repeated(self) -> None:
        """A step that had been applied, or was running, was sent again."""
        self._repeats.inc()
        otlp.record(names.SERVER_REPEATS, 1)

    def session_reaped(self) -> None:
        """A session ended by silence."""
        self._reaped.inc()
        otlp.record(names.SERVER_REAPED, 1)

    def watch(
        self, metric: names.Metric, label: names.Attribute, count: Callable[[], Mapping[str, int]]
    ) -> None:
        """Add a gauge whose values by label are asked for whenever the metrics are read or sent."""
        self._registry.register(
            _Watched(metric.prometheus, f"{metric.what.capitalize()}.", label.label, count)
        )
        otlp.watch(metric, label, count)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, name: str, text: str, label: str, count: Callable[[], Mapping[str, int]]) -> None:
        self._name, self._text, self._label, self._count = name, text, label, count

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._count().items():
            family.add_metric([value], number)
        return [family]


def counts(values: Iterable[str], known: Iterable[str]) -> Mapping[str, int]:
    """How often each known value occurs; those that do not are 0, so that no series ever vanishes."""
    counter = Counter(values)
    return {value: counter[value] for value in known}
