"""The facade: what a traceparent is, what nests in what, and what a phase is."""

from __future__ import annotations

import asyncio
import time

import pytest
from otlp_collector import Collector

from arpo.client.timing import count_phases
from arpo.protocol.timing import Spent, read_timing, write_timing
from arpo.telemetry import names, tracing
from arpo.telemetry.phases import Interval, add_phase, phase, record
from arpo.telemetry.tracing import SpanContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "context"),
    [
        (f"00-{TRACE}-{SPAN}-01", SpanContext(TRACE, SPAN, sampled=True)),
        (f"00-{TRACE}-{SPAN}-00", SpanContext(TRACE, SPAN, sampled=False)),
        (f"00-{TRACE}-{SPAN}-03", SpanContext(TRACE, SPAN, sampled=True)),
        (f"cc-{TRACE}-{SPAN}-01-of-a-later-version", SpanContext(TRACE, SPAN, sampled=True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_has_it(header, context) -> None:
    assert SpanContext.parse(header) == context


@pytest.mark.parametrize("sampled", [True, False])
def test_a_traceparent_is_written_as_it_is_read(sampled) -> None:
    context = SpanContext(TRACE, SPAN, sampled)
    assert SpanContext.parse(context.traceparent) == context


def test_without_an_exporter_there_is_no_span_and_a_request_still_has_its_trace() -> None:
    async def main() -> None:
        tracing.adopt(f"00-{TRACE}-{SPAN}-01")
        with tracing.span(names.EPISODE) as span:
            span.set(names.SCORE, 1.0)
            span.fail("internal", "environment")
            assert span.context is None
            assert tracing.trace_id() == TRACE
            assert tracing.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        inner = asyncio.create_task(asyncio.to_thread(tracing.trace_id))
        apart = asyncio.get_running_loop().create_task(_trace(), context=tracing.detached())
        assert (await inner, await apart) == (TRACE, None)
        tracing.adopt(None)
        assert tracing.headers() == {}

    asyncio.run(main())


async def _trace() -> str | None:
    return tracing.trace_id()


def test_a_name_with_a_parent_is_no_span_outside_of_a_trace(exported: Collector) -> None:
    with tracing.span(names.PUSH) as span:
        assert span.context is None
    tracing.finished(names.LEASE, time.monotonic(), 0.1)
    tracing.finished(names.ENV_STEP, time.monotonic(), 0.1)
    exported.flush()
    assert [span.name for span in exported.spans] == ["env.step"]


def test_a_trace_in_a_trace_is_one_of_its_own(exported: Collector) -> None:
    with tracing.span(names.TRAIN_STEP) as step, tracing.span(names.EPISODE) as episode:
        assert step.context.trace_id != episode.context.trace_id
    exported.flush()
    assert {span.parent_id for span in exported.spans} == {""}


def test_what_others_do_not_sample_is_not_sent(exported: Collector) -> None:
    tracing.adopt(f"00-{TRACE}-{SPAN}-00")
    tracing.finished(names.ENV_STEP, time.monotonic(), 0.1)
    with tracing.span(names.LEARN) as span:
        assert span.context.trace_id == TRACE
        assert tracing.headers()["traceparent"].endswith("-00")
    tracing.adopt(None)
    exported.flush()
    assert exported.spans == []


def test_an_exception_is_the_error_of_its_span_by_its_class_alone(exported: Collector) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span(names.TRAIN_STEP):
        raise ValueError("a secret")
    exported.flush()
    (span,) = exported.spans
    assert (span.error, span.attributes) == ("ValueError", {"error.type": "ValueError"})
    assert b"secret" not in b"".join(exported.bodies)


def test_phases_nest_as_they_ran_and_are_sent_after_their_operation(exported: Collector) -> None:
    with record() as phases, phase("evaluate"):
        with phase("settle"):
            time.sleep(0.002)
        with phase("screenshot"):
            time.sleep(0.002)
        with phase("of somebody's provider"):
            pass
    outer = phases.intervals[-1]
    after = Interval("encode", outer.start + outer.seconds + 0.001, 0.001)
    tracing.finished(
        names.ENV_EVALUATE, outer.start - 0.001, outer.seconds + 0.01, phases=[*phases.intervals, after]
    )
    exported.flush()
    assert [span.name for span in exported.spans] == [
        "env.evaluate", "desktop.evaluate", "desktop.settle", "desktop.screenshot", "desktop.encode",
    ]  # fmt: skip
    assert exported.tree(exported.spans[0]) == (
        "env.evaluate",
        [
            ("desktop.evaluate", [("desktop.settle", []), ("desktop.screenshot", [])]),
            ("desktop.encode", []),
        ],
    )


def test_a_phase_knows_when_it_ran_and_sums_up() -> None:
    began = time.monotonic()
    with record() as phases:
        add_phase("act", 0.25, began)
        add_phase("act", 0.5)
        add_phase("settle", 0.0)
    assert phases == {"act": 0.75, "settle": 0.0}
    assert phases.intervals[0] == ("act", began, 0.25)
    assert phases.intervals[1].start == pytest.approx(began - 0.5, abs=0.1)


def test_timing_is_read_as_it_was_written_and_strangers_are_left_out() -> None:
    spent = [Spent("act", 0.0, 0.0123), Spent("settle", 0.0123, 0.25)]
    assert write_timing(spent) == "act;dur=12.30;start=0.00, settle;dur=250.00;start=12.30"
    assert read_timing(write_timing(spent)) == spent
    assert read_timing('cache;desc="hit";dur=2, act;dur=1.00, db;dur=5') == []
    assert read_timing("") == []
    assert write_timing([]) == ""


def test_a_servers_account_lies_in_the_middle_of_the_wait() -> None:
    began = time.monotonic() - 1.0
    with record() as phases:
        count_phases(write_timing([Spent("act", 0.1, 0.2), Spent("settle", 0.3, 0.3)]), began)
    act, settle = phases.intervals
    assert act.start - began == pytest.approx(0.2 + 0.1, abs=0.05)
    assert settle.start - act.start == pytest.approx(0.2)


def test_an_account_of_more_than_the_wait_is_of_something_else() -> None:
    with record() as phases:
        count_phases(write_timing([Spent("act", 0.0, 5.0)]), time.monotonic() - 1.0)
    assert phases == {}
