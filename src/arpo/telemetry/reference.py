"""Writes the tables of `docs/telemetry.md`: `python -m arpo.telemetry.reference docs/telemetry.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from arpo.telemetry.names import ATTRIBUTES, METRICS, SPANS, Attribute, Metric

BEGIN = (
    "<!-- made by `python -m arpo.telemetry.reference docs/telemetry.md` from src/arpo/telemetry/names.py -->"
)
END = "<!-- end of what is made -->"


def reference() -> str:
    """The tables, as Markdown."""
    spans = (
        (f"`{span.name}`", _code(span.parent) or "–", span.what, _names(span.attributes)) for span in SPANS
    )
    metrics = (_metric(one) for one in METRICS)
    return "\n".join(
        (
            "### Spans",
            "",
            *_table(("span", "child of", "covers", "attributes"), spans),
            "",
            "### Attributes",
            "",
            *_table(("attribute", "holds"), ((f"`{one.name}`", one.what) for one in ATTRIBUTES)),
            "",
            "### Metrics",
            "",
            *_table(("metric", "in Prometheus", "of", "kind", "unit", "counts", "labels"), metrics),
        )
    )


def refreshed(page: str) -> str:
    """A page with its tables made anew. Raises ValueError without the marks between which they are."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def _metric(one: Metric) -> Sequence[str]:
    unit, labels = one.unit.strip("{}"), ", ".join(f"`{label.label}`" for label in one.attributes)
    return f"`{one.name}`", f"`{one.prometheus}`", one.service, one.kind, unit, one.what, labels


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _code(names: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names.split(",") if name)


def _names(attributes: Sequence[Attribute]) -> str:
    return ", ".join(f"`{one.name}`" for one in attributes)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
