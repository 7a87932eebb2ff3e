"""What a person watching sees: a live line on a terminal, plain lines elsewhere, and text as it is."""

from __future__ import annotations

import asyncio
import io
import re

from rich.console import Console

from arpo.trainer import progress
from arpo.trainer.progress import Reporter
from arpo.trainer.status import Status, duration, eta_s

LONG = "a path/[deep]/" + 12 * "folder/"


def reporter(**options) -> tuple[Reporter, io.StringIO]:
    text = io.StringIO()
    return Reporter(Console(file=text, width=80, highlight=False, **options)), text


def test_a_log_gets_plain_whole_lines_now_and_then(monkeypatch) -> None:
    watching, text = reporter()
    with watching.count("step 1/3 rollouts", 4) as counter:
        counter.update(1, "1 successes")
        assert text.getvalue() == "", "not a line for every episode"
        monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
        counter.update(2, "[x] successes")
        counter.advance()
    watching.say(LONG)
    lines = re.sub(r"\d+\.\d", "0.0", text.getvalue()).splitlines()
    stamp = "[   0.0s] "
    assert lines == [
        f"{stamp}step 1/3 rollouts: 2/4 [x] successes",
        f"{stamp}step 1/3 rollouts: 3/4",
        f"{stamp}{LONG}",
    ]


def test_on_a_terminal_lines_stay_whole_above_the_live_bar() -> None:
    watching, text = reporter(force_terminal=True, legacy_windows=False)
    with watching.count("rollouts", 4) as counter:
        counter.update(1, "[x] successes")
        watching.say("[one] line")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert re.search(r"s\] \[one\] line", plain)
    assert "[x] successes" in plain


STATUS = Status(
    phase="waits for episodes", step=2, steps=3, episodes=1, episodes_a_step=4, success=0.25, judged=8, busy=2, desktops=4,
    limit=3, requests=1, engine=0.5, policy_version=1, staleness=(0.5, 1), faults=2, rss_gib=0.54, eta_s=None,
)  # fmt: skip
FACTS = (
    "step 2/3; episodes 1/4; success 25 % of 8; desktops 2/4 busy, limit 3; engine 1 in flight, busy 50 %; "
    "learner waits for episodes; policy v1; staleness 0.5, most 1; faults 2; memory 0.5 GiB; ETA –"
)


def test_a_log_says_now_and_then_in_one_line_how_the_run_stands_stages_included(monkeypatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.05)
    watching, text = reporter()

    async def run() -> None:
        async with watching.watching(lambda: STATUS):
            await asyncio.sleep(0.08)
            with watching.count("evaluation before", 4) as counter:
                counter.update(3, "1 successes")
                await asyncio.sleep(0.06)
        await asyncio.sleep(0.1)

    asyncio.run(run())
    lines = [line.partition("] ")[2] for line in text.getvalue().splitlines()]
    assert lines == [FACTS, f"{FACTS}; evaluation before: 3/4 1 successes"]


def test_what_is_not_known_yet_is_not_made_up() -> None:
    rows = [{"step": step, "seconds/step": seconds} for step, seconds in ((1, 100.0), (2, 10.0), (3, 20.0))]
    assert eta_s(rows[:1], 10, 0.0) is None
    assert eta_s(rows, 10, 5.0) == 7 * 20 - 5
    assert eta_s(rows, 10, 500.0) == 6 * 20, "the step in hand is late: it may end at any moment"
    assert eta_s(rows, 3, 5.0) == 0
    assert eta_s(rows[1:], 10, 5.0) == 7 * 15 - 5, "the rows of the first steps may be gone"
    assert [duration(s) for s in (None, 0, 89, 700, 11_100)] == ["–", "0 s", "89 s", "12 min", "3 h 05 min"]
