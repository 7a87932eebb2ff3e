"""Signals are answered while something runs, and do afterwards what they did before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from arpo.signals import answered, handled, stop_request

TERM, HUP = signal.SIGTERM, signal.SIGHUP


def own(*_: object) -> None: ...


@pytest.fixture(autouse=True)
def before() -> Iterator[None]:
    kept = {number: signal.signal(number, own) for number in (TERM, HUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


class WithoutSignals(asyncio.SelectorEventLoop):
    """As on Windows."""

    def add_signal_handler(self, *_: object) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, *_: object) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, WithoutSignals])
def test_each_signal_is_told_and_the_old_handlers_come_back(loop: type[asyncio.SelectorEventLoop]) -> None:
    got: list[signal.Signals] = []

    async def work() -> None:
        with answered([TERM, HUP], got.append):
            for number in (TERM, HUP, TERM):
                send(number)
                await asyncio.sleep(0.02)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())
        assert signal.getsignal(TERM) is signal.getsignal(HUP) is own
    assert got == [TERM, HUP, TERM]
    assert signal.getsignal(TERM) is own


def test_an_answer_that_was_given_inside_stays() -> None:
    async def work() -> None:
        with answered([TERM], own):
            signal.signal(TERM, signal.SIG_IGN)

    with handled([TERM], lambda *_: None):
        asyncio.run(work())
    assert signal.getsignal(TERM) is signal.SIG_IGN


def test_a_handler_that_raises_ends_what_is_inside() -> None:
    def end(*_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), handled([TERM], end):
        send(TERM)
    assert signal.getsignal(TERM) is own


def test_the_first_request_to_stop_counts_and_nohup_is_respected() -> None:
    signal.signal(HUP, signal.SIG_IGN)

    async def work() -> signal.Signals | None:
        with stop_request() as stop:
            send(HUP)
            waiting = asyncio.create_task(stop.wait())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            send(TERM)
            await waiting
            send(signal.SIGINT)
            await asyncio.sleep(0.05)
            return stop.signal

    assert asyncio.run(work()) is TERM
