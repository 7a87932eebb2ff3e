"""Spans, for code that is traced: it says what it does, and pays next to nothing while nobody exports.

`arpo.telemetry.export` decides whether somebody does. The trace that a piece of work belongs to is known either way: it
came with the request or with the actor's call, as a W3C traceparent.

Invariants
- Nothing here imports OpenTelemetry.
- A span that was begun ends, whatever happens inside of it.
- Spans of an operation that is reported once it has ended are handed on parent first: whoever gets a child has got, or
  was to get, its parent before.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from arpo.telemetry.names import ERROR_TYPE, FAULT, FAULT_CODE, OUTCOME, PHASES, Attribute, SpanName, Value
from arpo.telemetry.phases import Interval

TRACEPARENT = "traceparent"
"""The header of https://www.w3.org/TR/trace-context/."""

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Given = Mapping[Attribute, Value]


@dataclass(frozen=True)
class SpanContext:
    """Which span, in lower-case hexadecimal digits: 32 of its trace, 16 of its own."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As a header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"

    @classmethod
    def parse(cls, traceparent: str | None) -> SpanContext | None:
        """The span that a header names; None for no header, or one that is none."""
        match = _TRACEPARENT.fullmatch(traceparent or "")
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if (more and version == "00") or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))


class Recorded(Protocol):
    """A span that a backend has begun."""

    @property
    def context(self) -> SpanContext:
        """Which it is."""

    def set(self, attribute: Attribute, value: Value) -> None:
        """Set an attribute."""

    def link(self, context: SpanContext) -> None:
        """Point to a span of another trace."""

    def end(self, error: str | None, end_ns: int | None = None) -> None:
        """It has ended. error: why with status error, in a word; end_ns: Unix time, by default now."""


class Backend(Protocol):
    """Where spans go."""

    def begin(
        self, name: SpanName, parent: SpanContext | None, attributes: Given, start_ns: int | None = None
    ) -> Recorded:
        """Begin a span. start_ns: Unix time, by default now."""


class Span:
    """A span as the code inside of it sees it; made by `span`. This one records nothing."""

    context: SpanContext | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def set(self, attribute: Attribute, value: Value | None) -> None:
        """Set an attribute; None: leave it out."""

    def link(self, context: SpanContext) -> None:
        """Point to a span of another trace."""

    def fail(self, code: str, fault: str) -> None:
        """What it covers failed with a problem."""


_NO_SPAN = Span()


class _LiveSpan(Span):
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._error: str | None = None
        self._token: Token[SpanContext | None] | None = None
        self.context = recorded.context

    def __enter__(self) -> Self:
        self._token = _current.set(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if isinstance(error, asyncio.CancelledError):
            self.set(OUTCOME, "cancelled")
        elif kind is not None and self._error is None:
            self.set(ERROR_TYPE, kind.__name__)
            self._error = kind.__name__
        self._recorded.end(self._error)

    def set(self, attribute: Attribute, value: Value | None) -> None:
        if value is not None:
            self._recorded.set(attribute, value)

    def link(self, context: SpanContext) -> None:
        self._recorded.link(context)

    def fail(self, code: str, fault: str) -> None:
        self._error = code
        self._recorded.set(FAULT_CODE, code)
        self._recorded.set(FAULT, fault)


_backend: Backend | None = None
_current: ContextVar[SpanContext | None] = ContextVar("arpo_span", default=None)


def use(backend: Backend | None) -> None:
    """Send the spans of this process there from now on; None: nowhere."""
    global _backend
    _backend = backend


def span(name: SpanName, attributes: Given | None = None) -> Span:
    """A context manager: a span that is the current one inside.

    A name without a parent begins a trace of its own; one with a parent is no span outside of a trace.
    """
    if _backend is None:
        return _NO_SPAN
    parent = _current.get() if name.parent else None
    if name.parent and parent is None:
        return _NO_SPAN
    return _LiveSpan(_backend.begin(name, parent, attributes or {}))


def finished(
    name: SpanName,
    start: float,
    seconds: float,
    attributes: Given | None = None,
    *,
    phases: Iterable[Interval] = (),
    error: str | None = None,
) -> None:
    """Report what has ended as a child of the current span. Without one a server's span is a trace's root, and any other
    is none.

    start: of `time.monotonic`. phases: of it, which become its children, each in the one that it ran in; those that
    `PHASES` lacks are left out. error: why it has status error, in a word.
    """
    if _backend is None or (_current.get() is None and name.kind != "server"):
        return
    unix_ns = time.time_ns() - time.monotonic_ns()
    parent = _report(_backend, name, _current.get(), unix_ns, start, seconds, attributes or {}, error)
    around: list[tuple[float, SpanContext]] = [(float("inf"), parent)]
    for phase in sorted(phases, key=lambda one: (one.start, -one.seconds)):
        if phase.name not in PHASES:  # a provider may be anyone's code
            continue
        while phase.start + phase.seconds > around[-1][0] and len(around) > 1:
            around.pop()
        inner = _report(
            _backend, PHASES[phase.name], around[-1][1], unix_ns, phase.start, phase.seconds, {}, None
        )
        around.append((phase.start + phase.seconds, inner))


def _report(
    backend: Backend,
    name: SpanName,
    parent: SpanContext | None,
    unix_ns: int,
    start: float,
    seconds: float,
    attributes: Given,
    error: str | None,
) -> SpanContext:
    start_ns = unix_ns + round(start * 1e9)
    recorded = backend.begin(name, parent, attributes, start_ns)
    recorded.end(error, start_ns + round(seconds * 1e9))
    return recorded.context


def adopt(traceparent: str | None) -> None:
    """What follows in this task belongs to the span that a header names, or to none."""
    _current.set(SpanContext.parse(traceparent))


def detached() -> contextvars.Context:
    """The present context without a current span, for a task that is no part of what began it."""
    context = contextvars.copy_context()
    context.run(_current.set, None)
    return context


def current() -> SpanContext | None:
    """The span that the present work belongs to, in this process or in another."""
    return _current.get()


def trace_id() -> str | None:
    """The trace that the present work belongs to."""
    context = _current.get()
    return None if context is None else context.trace_id


def traceparent() -> str | None:
    """The current span, for another process."""
    context = _current.get()
    return None if context is None else context.traceparent


def headers() -> dict[str, str]:
    """The current span, for an HTTP request."""
    context = _current.get()
    return {} if context is None else {TRACEPARENT: context.traceparent}


def link_all(span: Span, spans: Sequence[tuple[str | None, str | None]]) -> None:
    """Point to spans of other traces. spans: trace and span id each; those without are left out."""
    for trace, one in spans:
        if trace is not None and one is not None:
            span.link(SpanContext(trace, one))
