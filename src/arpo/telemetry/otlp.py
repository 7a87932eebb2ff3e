"""Spans and metrics through the OpenTelemetry SDK to a collector, by OTLP over HTTP. The one module that imports it.

Invariants
- Nothing here waits for a collector but the exporters' own threads; what they cannot keep up with is dropped.
- A collector that fails is named once, without credentials.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

import arpo
from arpo.telemetry.export import endpoint
from arpo.telemetry.metrics import Labels
from arpo.telemetry.names import BUCKETS_S, SCOPE, Attribute, Metric, SpanName, Value
from arpo.telemetry.tracing import Given, SpanContext

TIMEOUT_S = 5.0
"""For one export, repeats included, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise."""
LINKS = 2048
"""Episodes that a train step can link to, unless `OTEL_SPAN_LINK_COUNT_LIMIT` says otherwise."""

_KINDS = {"internal": otel.SpanKind.INTERNAL, "client": otel.SpanKind.CLIENT, "server": otel.SpanKind.SERVER}


class OtlpExporters:
    """The exporters of this process. say: told once by each signal that its collector does not take it."""

    def __init__(self, service: str, signals: frozenset[str], say: Callable[[str], None]) -> None:
        # their retries, drops and tracebacks are said here, once and without headers or URLs
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        given = OTELResourceDetector().detect().attributes
        about = {SERVICE_NAME: given.get(SERVICE_NAME, service), SERVICE_VERSION: arpo.__version__}
        resource = Resource.create(about)
        self.spans = OtlpSpans(resource, say) if "traces" in signals else None
        self.metrics = OtlpMetrics(resource, say) if "metrics" in signals else None

    def shutdown(self) -> None:
        """Send what was not sent yet, and end."""
        for backend in (self.spans, self.metrics):
            if backend is not None:
                backend.shutdown()


class OtlpSpans:
    """An `arpo.telemetry.tracing.Backend`."""

    def __init__(self, resource: Resource, say: Callable[[str], None]) -> None:
        limits = {} if "OTEL_SPAN_LINK_COUNT_LIMIT" in os.environ else {"max_links": LINKS}
        self._provider = TracerProvider(
            resource=resource, shutdown_on_exit=False, span_limits=SpanLimits(**limits)
        )
        self._provider.add_span_processor(BatchSpanProcessor(_SpanExporter(say)))
        self._tracer = self._provider.get_tracer(SCOPE, arpo.__version__)

    def begin(
        self, name: SpanName, parent: SpanContext | None, attributes: Given, start_ns: int | None = None
    ) -> OtlpSpan:
        """Begin a span."""
        return OtlpSpan(
            self._tracer.start_span(
                name.name,
                # not OpenTelemetry's own current span: what is around us may be traced by others
                context=otel.set_span_in_context(
                    otel.NonRecordingSpan(_otel_context(parent)) if parent else otel.INVALID_SPAN
                ),
                kind=_KINDS[name.kind],
                attributes={attribute.name: value for attribute, value in attributes.items()},
                start_time=start_ns,
            )
        )

    def shutdown(self) -> None:
        """Send what was not sent yet, and end."""
        self._provider.shutdown()


class OtlpSpan:
    """An `arpo.telemetry.tracing.Recorded`."""

    def __init__(self, span: otel.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.context = SpanContext(
            otel.format_trace_id(context.trace_id),
            otel.format_span_id(context.span_id),
            context.trace_flags.sampled,
        )

    def set(self, attribute: Attribute, value: Value) -> None:
        """Set an attribute."""
        self._span.set_attribute(attribute.name, value)

    def link(self, context: SpanContext) -> None:
        """Point to a span of another trace."""
        self._span.add_link(_otel_context(context))

    def end(self, error: str | None, end_ns: int | None = None) -> None:
        """It has ended."""
        if error is not None:
            self._span.set_status(otel.Status(otel.StatusCode.ERROR, error))
        self._span.end(end_ns)


class OtlpMetrics:
    """An `arpo.telemetry.metrics.Backend`."""

    def __init__(self, resource: Resource, say: Callable[[str], None]) -> None:
        self._provider = MeterProvider(
            [PeriodicExportingMetricReader(_MetricExporter(say))],
            resource=resource,
            shutdown_on_exit=False,
        )
        self._meter = self._provider.get_meter(SCOPE, arpo.__version__)
        self._instruments: dict[str, Callable[[float, Mapping[str, str]], None]] = {}

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        """Observe a histogram's value, add to a counter, or set a gauge."""
        into = self._instruments.get(metric.name) or self._instruments.setdefault(
            metric.name, self._instrument(metric)
        )
        into(value, _labels(labels))

    def watch(self, metric: Metric, label: Attribute, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask for a gauge's values by label whenever metrics are sent."""

        def values(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(number, {label.label: value}) for value, number in count().items()]

        self._meter.create_observable_gauge(metric.name, [values], metric.unit, metric.what)

    def shutdown(self) -> None:
        """Send the last figures, and end."""
        self._provider.shutdown()

    def _instrument(self, metric: Metric) -> Callable[[float, Mapping[str, str]], None]:
        about = {"unit": metric.unit, "description": metric.what}
        match metric.kind:
            case "histogram":
                histogram = self._meter.create_histogram(
                    metric.name, explicit_bucket_boundaries_advisory=BUCKETS_S, **about
                )
                return histogram.record
            case "counter":
                return self._meter.create_counter(metric.name, **about).add
            case "gauge":
                return self._meter.create_gauge(metric.name, **about).set


class _Complaint:
    """Says once that a collector does not take what it is sent."""

    def __init__(self, signal: str, say: Callable[[str], None]) -> None:
        parts = urlsplit(endpoint(signal))
        where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self._message = (
            f"warning: the collector at {where} does not take {signal}; they are dropped until it does"
        )
        self._say = say
        self._said = False

    def about(self, failed: bool) -> None:
        """An export has ended."""
        if failed and not self._said:
            self._said = True
            self._say(self._message)


class _SpanExporter(OTLPSpanExporter):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(timeout=_unless_set("TRACES_TIMEOUT", "TIMEOUT"))
        self._complaint = _Complaint("traces", say)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = super().export(spans)
        except Exception:  # of whatever the transport meets; the run does not depend on it
            result = SpanExportResult.FAILURE
        self._complaint.about(result is not SpanExportResult.SUCCESS)
        return result


class _MetricExporter(OTLPMetricExporter):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(timeout=_unless_set("METRICS_TIMEOUT", "TIMEOUT"))
        self._complaint = _Complaint("metrics", say)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        try:
            result = super().export(metrics_data, timeout_millis, **kwargs)
        except Exception:  # as above
            result = MetricExportResult.FAILURE
        self._complaint.about(result is not MetricExportResult.SUCCESS)
        return result


def _otel_context(context: SpanContext) -> otel.SpanContext:
    return otel.SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(int(context.sampled)),
    )


def _labels(labels: Labels) -> dict[str, str]:
    return {attribute.label: value for attribute, value in labels.items()}


def _unless_set(*names: str) -> float | None:
    """Our time-out; None, so that the exporter reads its own, when the environment has one."""
    return None if any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in names) else TIMEOUT_S
