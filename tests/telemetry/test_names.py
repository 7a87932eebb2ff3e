"""The names are one list: the page says them, and nothing goes by another."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from arpo.protocol.problems import Fault, ProblemCode
from arpo.server.metrics import ServerMetrics
from arpo.telemetry import names
from arpo.telemetry.reference import refreshed

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "telemetry.md"


def test_the_committed_page_is_what_the_names_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == refreshed(page), "run: python -m arpo.telemetry.reference docs/telemetry.md"


def test_names_are_unique_and_every_parent_is_a_span() -> None:
    for group in (names.SPANS, names.METRICS, names.ATTRIBUTES):
        every = [one.name for one in group]
        assert len(set(every)) == len(every) > 5
    spans = {one.name for one in names.SPANS}
    for one in names.SPANS:
        assert set(filter(None, re.split(r", ?", one.parent))) <= spans, one.name


def test_the_env_servers_page_for_prometheus_has_the_names_that_a_collector_makes() -> None:
    metrics = ServerMetrics()
    metrics.operation_ended("step", "ok", 0.2, {"act": 0.1})
    metrics.problem_answered(ProblemCode.CAPACITY.value, Fault.ENVIRONMENT.value)
    metrics.step_repeated()
    metrics.session_reaped()
    metrics.watch(names.SERVER_SESSIONS, names.STATE, lambda: {"ready": 2})
    metrics.watch(names.SERVER_DESKTOPS, names.STATE, lambda: {"free": 1})
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    for metric in names.METRICS:
        if metric.service != names.ENV_SERVER:
            continue
        family = families[metric.prometheus.removesuffix("_total")]
        assert family.type == metric.kind
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == {one.label for one in metric.attributes}, metric.name
        if metric.kind == "histogram":
            bounds = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
            assert bounds == {*names.BUCKETS_S, float("inf")}
            assert max(names.BUCKETS_S) == 300.0
