"""An OTLP/HTTP collector on a socket: keeps what it is sent, decoded. Also the two kinds of dead ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Got:
    """A span as it arrived; ids in hexadecimal, times in seconds. links: (trace id, span id)."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any]
    error: str | None
    links: tuple[tuple[str, str], ...]
    kind: int


@dataclass
class Collector:
    """What has arrived so far. metrics: (service, name) → the latest data points, as protobuf."""

    url: str
    spans: list[Got] = field(default_factory=list)
    metrics: dict[tuple[str, str], Any] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    flush: Callable[[], None] = lambda: None

    def named(self, name: str) -> list[Got]:
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Got) -> list[Got]:
        """By their beginning."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start, span.end))

    def tree(self, root: Got) -> Any:
        """(name, subtrees) of a span and everything below it."""
        return root.name, [self.tree(child) for child in self.children(root)]

    def orphans(self) -> list[Got]:
        """Spans whose parents have not arrived."""
        there = {(span.trace_id, span.span_id) for span in self.spans}
        return [s for s in self.spans if s.parent_id and (s.trace_id, s.parent_id) not in there]

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that is to export here."""
        soon = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_BSP_SCHEDULE_DELAY": "500"}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, **soon, **more}


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    got = Collector("")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                got.requests.append(dict(self.headers))
                got.bodies.append(body)
                if self.path == "/v1/traces":
                    got.spans += _spans(body)
                elif self.path == "/v1/metrics":
                    got.metrics |= _metrics(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    got.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield got
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def refusing() -> str:
    """The URL of a collector that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _spans(body: bytes) -> Iterator[Got]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Got(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    _values(span.attributes),
                    span.status.message if span.status.code == 2 else None,
                    tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    span.kind,
                )


def _metrics(body: bytes) -> dict[tuple[str, str], Any]:
    found = {}
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[service, metric.name] = list(getattr(metric, metric.WhichOneof("data")).data_points)
    return found


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
