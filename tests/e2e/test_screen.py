"""What a person sees of `arpo train` in a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from screens import train
from test_train_on_ranks import UNTAUGHT

pytestmark = pytest.mark.slow


def test_one_display_for_the_whole_run_says_how_it_stands_below_the_lines_that_are_said(
    tmp_path: Path,
) -> None:
    terminal = train(
        *UNTAUGHT, f"run.dir={tmp_path}", "run.name=seen", "trainer.max_steps=3", "trainer.eval_after=true",
        "trainer.eval_repeats=1",
    )  # fmt: skip
    try:
        screens = terminal.finish()
    finally:
        terminal.process.kill()
    assert terminal.process.returncode == 0, terminal.screen
    shown = [screen for screen in screens if "learner " in screen]
    for fact in (
        r"step [123]/3", r"episodes \d/3", r"success (–|\d+ % of \d+)", r"desktops \d/2 busy", r"engine \d in flight",
        r"learner (starts|waits for episodes|learns|publishes weights|saves)", r"policy v[0-3]", r"staleness ",
        r"faults 0", r"memory 0\.\d GiB", r"ETA –",
    ):  # fmt: skip
        assert any(re.search(fact, screen) for screen in shown), fact
    assert any("learner waits for episodes" in screen and "desktops 2/2 busy" in screen for screen in shown)
    assert any(re.search(r"ETA \d+ s", screen) for screen in shown), "after two steps"
    assert any("evaluation after" in screen and "learner waits for evaluation" in screen for screen in shown)
    for screen in shown:
        assert screen.count("learner ") == 1, f"two displays at once:\n{screen}"
        lines = screen.splitlines()
        said = [n for n, line in enumerate(lines) if re.match(r"\[ +[\d.]+s\] ", line)]
        display = next(n for n, line in enumerate(lines) if "learner " in line)
        assert max(said) < display, f"said below the display:\n{screen}"

    left = terminal.screen
    assert "learner " not in left, "the display goes with the run"
    for step in (1, 2, 3):
        assert re.search(rf"^\[ +[\d.]+s\] step {step}/3: score", left, re.MULTILINE), left
    assert "run directory" in left
    assert not terminal.cursor_hidden


def test_a_narrow_terminal_without_colours_shows_every_fact_whole(tmp_path: Path) -> None:
    terminal = train(
        *UNTAUGHT, f"run.dir={tmp_path}", "run.name=narrow", "trainer.max_steps=50", columns=36, NO_COLOR="1"
    )
    try:
        terminal.watch(
            lambda screen: "learner waits for episodes" in screen and "desktops 2/2 busy" in screen
        )
        *_, screen = terminal.watch(lambda screen: re.search(r"memory \d\.\d GiB", screen) is not None)
        assert "engine" in screen
        terminal.process.terminate()
        terminal.finish()
    finally:
        terminal.process.kill()
    assert terminal.process.returncode == 75
    assert not terminal.cursor_hidden
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", terminal.raw), "a colour"
