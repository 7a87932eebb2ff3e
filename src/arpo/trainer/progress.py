"""What a person watching sees: one live display on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from arpo.telemetry.logs import suffix
from arpo.trainer.status import Status

PLAIN_EVERY_S = 15.0
_LIVE_EVERY_S = 0.25


class Counter:
    """Progress of one stage; made by `Reporter.count`.

    bars: where it is shown, if anywhere. plain: takes a line now and then, where it is shown nowhere else.
    """

    def __init__(self, title: str, total: int, bars: Progress | None, plain: Callable[[str], None]) -> None:
        self._title = title
        self._total = total
        self._bars = bars
        self._bar = bars.add_task(title, total=total, note="") if bars else None
        self._plain = plain
        self._done = 0
        self._note = ""
        self._last_line = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Set how much is done and what to say beside it."""
        self._done, self._note = done, note
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=done, note=note)
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self._plain(self.line)

    def advance(self, note: str = "") -> None:
        """One more is done."""
        self.update(self._done + 1, note)

    @property
    def line(self) -> str:
        """How far it is, in words."""
        return f"{self._title}: {self._done}/{self._total} {self._note}".rstrip()

    def end(self) -> None:
        """Show it no longer."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bars = None


class Reporter:
    """Prints stages and their progress to stderr; results belong on stdout."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._counters: list[Counter] = []
        self._watched: Progress | None = None
        self._in_log = False

    def say(self, message: str) -> None:
        """One line with the seconds since the start, and with the trace that it belongs to."""
        elapsed = time.monotonic() - self._started
        # one print: a live display would come between two
        self.console.print(
            Text.assemble((f"[{elapsed:6.1f}s] ", "dim"), message, (suffix(), "dim")), soft_wrap=True
        )

    @contextmanager
    def count(self, title: str, total: int) -> Iterator[Counter]:
        """A stage with a number of things to do."""
        own = _bars(self.console) if self.console.is_interactive and self._watched is None else None
        plain = (lambda line: None) if self._in_log else self.say
        if own is not None:
            own.start()
        counter = Counter(title, total, self._watched or own, plain)
        self._counters.append(counter)
        try:
            yield counter
        finally:
            self._counters.remove(counter)
            if own is not None:
                own.stop()
            counter.end()

    @asynccontextmanager
    async def watching(self, source: Callable[[], Status]) -> AsyncIterator[None]:
        """Show a run inside, stages included: on a terminal all the time, elsewhere in a line now and then."""
        show = self._live if self.console.is_interactive else self._log
        shown = asyncio.create_task(show(source))
        await asyncio.sleep(0)  # it is on the screen before anything is counted
        try:
            yield
        finally:
            shown.cancel()
            await asyncio.wait([shown])
            if not shown.cancelled() and (error := shown.exception()):
                self.say(f"warning: the display ended early: {type(error).__name__}: {error}")

    async def _live(self, source: Callable[[], Status]) -> None:
        bars = _bars(self.console)
        run = bars.add_task("step", total=None, note="")

        def picture() -> Group:
            status = source()
            title = f"step {status.step}/{status.steps}"
            if bars.tasks[0].description != title:
                bars.reset(run, description=title, total=status.episodes_a_step)
            bars.update(run, completed=status.episodes)
            return Group(bars.get_renderable(), _grid(status.facts()))

        self._watched = bars
        try:
            # not in a thread of its own: what it shows belongs to this loop
            with Live(
                get_renderable=picture, console=self.console, auto_refresh=False, transient=True
            ) as live:
                while True:
                    live.refresh()
                    await asyncio.sleep(_LIVE_EVERY_S)
        finally:
            self._watched = None

    async def _log(self, source: Callable[[], Status]) -> None:
        self._in_log = True
        try:
            while True:
                await asyncio.sleep(PLAIN_EVERY_S)
                self.say("; ".join([*source().facts(), *(counter.line for counter in self._counters)]))
        finally:
            self._in_log = False


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
    )


def _grid(facts: list[str]) -> Columns:
    """As many beside each other as the terminal is wide enough for."""
    return Columns([Text(fact, no_wrap=True) for fact in facts], padding=(0, 3))
