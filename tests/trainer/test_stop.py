"""A stop waits for what must not be torn, but not for ever; the first signal decides how the process ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from arpo.trainer.stop import Stop

TERM, INT = signal.SIGTERM, signal.SIGINT


def stopped(stop: Stop, work) -> list[str]:
    """What the work noted before it was cancelled; it gets the stop and its list."""
    notes: list[str] = []

    async def run() -> None:
        task = asyncio.ensure_future(work(stop, notes))
        stop.attach(task)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return notes


def test_a_stop_cancels_at_once_where_nothing_is_torn() -> None:
    async def work(stop: Stop, notes: list[str]) -> None:
        asyncio.get_running_loop().call_soon(stop.ask, TERM)
        await asyncio.sleep(60)

    stop = Stop(grace_s=60)
    stopped(stop, work)
    assert (stop.asked, stop.overdue) == (True, False)
    assert stop.ended.code == 75


def test_what_must_not_be_torn_is_finished_first_and_other_signals_change_nothing() -> None:
    async def work(stop: Stop, notes: list[str]) -> None:
        with stop.held_off():
            for number in (INT, TERM, INT):
                stop.ask(number)
            await asyncio.sleep(0.05)
            notes.append("step")
            stop.result = "step-000003 is saved"
        notes.append("what comes after it")

    stop = Stop(grace_s=60)
    assert stopped(stop, work) == ["step"]
    assert not stop.overdue
    assert stop.ended.code == 130
    assert str(stop.ended) == "stopped: step-000003 is saved; the same command goes on"


def test_the_grace_period_ends_the_wait() -> None:
    async def work(stop: Stop, notes: list[str]) -> None:
        with stop.held_off():
            stop.ask(TERM)
            await asyncio.sleep(60)
            notes.append("step")

    stop = Stop(grace_s=0.05)
    assert stopped(stop, work) == []
    assert stop.overdue
    assert "was not done after 0.05 s, so the newest checkpoint stands" in str(stop.ended)


def test_a_stop_that_nobody_asks_for_is_not_there() -> None:
    async def work() -> int:
        stop = Stop(grace_s=0.01)
        with stop.held_off():
            await asyncio.sleep(0.05)
        assert not stop.asked
        return 3

    assert asyncio.run(work()) == 3


PROGRAM = """
import asyncio, time, typer
from arpo.console import run_app
from arpo.trainer.stop import Stop, until_stopped

async def work(stop):
    print("begun", flush=True)
    with stop.held_off():
        await asyncio.to_thread(time.sleep, {held})
    await asyncio.to_thread(time.sleep, {free})

def command():
    stop = Stop(grace_s={grace})
    asyncio.run(until_stopped(work(stop), stop))

app = typer.Typer()
app.command()(command)
run_app(app)
"""


@pytest.mark.parametrize(
    ("held", "free", "code", "signals"),
    [
        (0.2, 0, 75, [TERM]),
        (0.2, 0, 75, [TERM, TERM, INT]),
        (0.2, 0, 130, [INT, TERM]),
        (60, 0, 75, [TERM]),  # a step that is not done in time
        (0, 60, 130, [INT]),  # a thread that nobody waits for, and nobody can stop
        (0, 0.1, 0, []),
    ],
)
def test_the_exit_code_says_how_it_ended_and_comes_in_time(held, free, code, signals) -> None:
    program = PROGRAM.format(held=held, free=free, grace=0.5)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    asked = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert time.monotonic() - asked < 10
    assert said.count("\n") == (1 if signals else 0), said
