"""Exit codes tell the truth: 0 done, 1 failed, 2 wrong input, 130 and 143 stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
import typer

from arpo.console import Failed, Terminated, run_app, until_signal
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError


def run(monkeypatch, action) -> int:
    """The exit code of a command that does this."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(action)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    return ended.value.code


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


LOST = ProblemError(ProblemCode.START_FAILED, "not ready")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no such key; fix: another"), 2, "error: no such key; fix: another"),
        (Failed("not every stage happened"), 1, "error: not every stage happened"),
        (LOST, 1, "error: start_failed: not ready"),
        (
            ExceptionGroup("tasks", [ExceptionGroup("inner", [LOST]), LOST]),
            1,
            "error: start_failed: not ready",
        ),
        (ExceptionGroup("tasks", [ConfigError("wrong")]), 2, "error: wrong"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Terminated(), 143, "terminated"),
    ],
)
def test_what_is_foreseen_ends_in_one_line_and_its_code(monkeypatch, capsys, error, code, line) -> None:
    assert run(monkeypatch, raising(error)) == code
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), ExceptionGroup("tasks", [LOST, ZeroDivisionError("a bug")])]
)
def test_a_bug_is_never_dressed_up(monkeypatch, error) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(raising(error))
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(type(error)) as caught:
        run_app(app)
    assert caught.value is error


def test_done_is_0_and_a_returned_code_is_kept(monkeypatch) -> None:
    assert run(monkeypatch, lambda: None) == 0
    assert run(monkeypatch, lambda: 3) == 3


def test_sigterm_lets_what_is_held_be_released_and_a_second_one_is_patient() -> None:
    released: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
            released.append("all")

    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(Terminated):
            asyncio.run(until_signal(work()))
        assert released == ["all"]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_signal_the_result_is_returned() -> None:
    async def work() -> int:
        return 3

    assert asyncio.run(until_signal(work())) == 3
