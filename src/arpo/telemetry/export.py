"""Whether spans and metrics leave this process, and that they never hurt it.

OpenTelemetry's own environment variables decide: with `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`
or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` set, unless `OTEL_SDK_DISABLED=true`.

Invariants
- Without an endpoint OpenTelemetry is not imported.
- Whatever is wrong with packages, settings or the collector is said in one line, and never stops or slows anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlsplit

from arpo.telemetry import logs, metrics, tracing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
FLUSH_S = 2.0
"""How long the end of a process waits for what was not sent yet."""

Say = Callable[[str], None]


class Exporting(Protocol):
    """Exporters at work: the backends of spans and metrics, each if its signal is on."""

    @property
    def spans(self) -> tracing.Backend | None:
        """Where spans go."""

    @property
    def metrics(self) -> metrics.Backend | None:
        """Where metrics go."""

    def shutdown(self) -> None:
        """Send what was not sent yet, and end."""


def signals(environment: Mapping[str, str]) -> frozenset[str]:
    """Which of `traces` and `metrics` are to be exported."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(
        signal
        for signal in ("traces", "metrics")
        if endpoint(signal, environment)
        and environment.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip() != "none"
    )


def endpoint(signal: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where a signal goes; empty: nowhere. Its URL may hold credentials."""
    own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    return own or environment.get(ENDPOINT, "").strip()


@contextmanager
def exporting(service: str, say: Say) -> Iterator[None]:
    """Export what happens inside, if the environment says so; leaving takes at most `FLUSH_S` seconds longer.

    service: `service.name`. say: told in one line what is wrong, from any thread.
    """
    exporters = begin(service, say)
    if exporters is None:
        yield
        return
    try:
        yield
    finally:
        tracing.use(None)
        metrics.use(None)
        # a daemon: a collector that does not answer must not keep the process
        flushing = threading.Thread(target=exporters.shutdown, name="telemetry-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


def begin(service: str, say: Say) -> Exporting | None:
    """As `exporting`, for a process that is killed at its end, such as a Ray actor. None: nothing is exported."""
    wanted = signals(os.environ)
    if not wanted:
        return None
    for signal in sorted(wanted):
        parts = urlsplit(endpoint(signal))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            say(
                f"warning: nothing is traced: the OTLP endpoint of {signal} is no URL; fix: e.g. {ENDPOINT}=http://localhost:4318"
            )
            return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() or "http/protobuf"
    if protocol != "http/protobuf":
        say(
            f"warning: nothing is traced: OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; "
            "fix: http/protobuf, which collectors take on port 4318"
        )
        return None
    try:
        from arpo.telemetry.otlp import OtlpExporters
    except ImportError as error:
        say(
            f"warning: nothing is traced: an OTLP endpoint is set, but {error.name or error} is not installed; "
            "fix: pip install 'arpo[telemetry]', or unset OTEL_EXPORTER_OTLP_*ENDPOINT"
        )
        return None
    try:
        exporters = OtlpExporters(service, wanted, say)
    except Exception as error:  # of settings that only OpenTelemetry understands; never worth a run
        say(
            f"warning: nothing is traced: OpenTelemetry refuses its settings ({type(error).__name__}); fix: OTEL_*"
        )
        return None
    logs.in_plain_lines()
    tracing.use(exporters.spans)
    metrics.use(exporters.metrics)
    return exporters
