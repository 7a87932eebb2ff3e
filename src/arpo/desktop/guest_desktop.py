"""A desktop over any provider: reset to a task, perform actions, score.

Invariants
- An episode starts on a guest that nobody has touched since it was started or cleaned.
- Every failure is a ProblemError whose code says what failed.
- Nothing of an episode outlives it: its files on this host go with the next `clean` or `reset`, with `close`, or, when
  this process is killed, with the next desktop that is made on this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arpo.desktop.evaluate import evaluate
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.getters import GetterContext, runs_upstream
from arpo.desktop.setup import SetupContext, SetupError, run_setup
from arpo.desktop.sources import Sources
from arpo.guest_client import GuestError, Settle
from arpo.protocol.actions import TERMINAL, Action, Click, Drag, Fail, Move, Scroll, Wait
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.base import Addresses, Guest, Provider, ProviderError
from arpo.scratch import ScratchFolder
from arpo.tasks.model import Task
from arpo.telemetry.phases import phase

_ALIVE_S = 5.0


@dataclass(frozen=True)
class DesktopTimeouts:
    """Seconds after which an operation counts as failed.

    reset_s is for a clean guest in place of a used one, setup_s for the task's setup with the wait for quiet pixels
    after it. Waiting that an action asks for is added to step_s. A failure takes up to `_ALIVE_S` longer: whether the
    guest still answers decides about its code.
    """

    start_s: float = 120.0
    reset_s: float = 120.0
    setup_s: float = 300.0
    step_s: float = 120.0
    evaluate_s: float = 300.0


@dataclass
class _Episode:
    task: Task
    folder: Path
    last_action: Action | None = None


class GuestDesktop:
    """A `Desktop` (see `arpo.desktop.base`) whose guest comes from a provider.

    settle: when the screen counts as quiet after actions.
    setup_settle: the same after a task's setup; longer, since windows map before they paint.
    sources: where task files come from.
    evaluators: processes shared with other desktops; without them the desktop has one of its own.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        timeouts: DesktopTimeouts | None = None,
        settle: Settle | None = None,
        setup_settle: Settle | None = None,
        sources: Sources | None = None,
        evaluators: EvaluatorPool | None = None,
    ) -> None:
        self._provider = provider
        self._timeouts = timeouts or DesktopTimeouts()
        self._settle = settle or Settle()
        self._setup_settle = setup_settle or Settle(quiet_s=0.25, ceiling_s=10.0)
        self._sources = sources or Sources()
        self._evaluators = evaluators or EvaluatorPool(workers=1)
        self._owns_evaluators = evaluators is None
        self._guest: Guest | None = None
        self._untouched = False
        self._episode: _Episode | None = None
        self._scratch: ScratchFolder | None = None

    @property
    def screen(self) -> tuple[int, int]:
        """Width and height in pixels. Raises ProblemError not_ready before the first start."""
        return self._running().screen

    async def start(self) -> None:
        """Start the guest ahead of the first reset. Raises ProblemError start_failed."""
        if self._guest is not None:
            return
        try:
            with phase("start"):
                async with asyncio.timeout(self._timeouts.start_s):
                    self._guest = await self._provider.start()
        except ProviderError as error:
            raise ProblemError(ProblemCode.START_FAILED, str(error)) from error
        except TimeoutError as error:
            detail = f"the guest did not start in {self._timeouts.start_s:g} s"
            raise ProblemError(ProblemCode.START_FAILED, detail) from error
        self._untouched = True

    async def clean(self) -> None:
        """End the episode and get a guest that nobody has touched, ahead of the next reset.

        Raises ProblemError start_failed or reset_failed; then there is no guest, and the next call starts one.
        """
        await self._end_episode()
        await self.start()
        if self._untouched:
            return
        limit_s = self._timeouts.reset_s
        try:
            with phase("clean"):
                async with asyncio.timeout(limit_s):
                    self._guest = await self._provider.reset(self._running())
        except ProviderError as error:
            await self._abandon_guest()
            raise ProblemError(ProblemCode.RESET_FAILED, str(error)) from error
        except TimeoutError as error:
            await self._abandon_guest()
            raise ProblemError(ProblemCode.RESET_FAILED, f"no clean guest after {limit_s:g} s") from error
        self._untouched = True

    async def reset(self, task: Task) -> bytes:
        """A clean guest in the task's initial state; returns the first screenshot (PNG).

        Raises ProblemError start_failed or reset_failed (no clean guest), invalid_task when the setup could work on no
        desktop, setup_failed when it failed or took too long on this one, desktop_lost when the guest is gone.
        """
        await self.clean()
        episode = self._episode = _Episode(task, await self._episode_folder())
        guest = self._running()
        self._untouched = False
        limit_s = self._timeouts.setup_s
        try:
            async with asyncio.timeout(limit_s):
                with phase("setup"):
                    await run_setup(task.config, self._setup_context(episode))
                await guest.client.settle(self._setup_settle)
                return await _screenshot(guest)
        except SetupError as error:
            code = ProblemCode.INVALID_TASK if error.task_is_wrong else ProblemCode.SETUP_FAILED
            raise await self._blamed(code, str(error)) from error
        except GuestError as error:
            raise await self._blamed(ProblemCode.SETUP_FAILED, str(error)) from error
        except TimeoutError as error:
            detail = f"the task's setup was not done after {limit_s:g} s"
            raise await self._blamed(ProblemCode.SETUP_FAILED, detail) from error

    async def execute(self, actions: Sequence[Action]) -> bytes:
        """Perform actions, wait for quiet pixels; returns the new screenshot (PNG).

        What follows a terminal action is not performed.
        Raises ProblemError invalid_action (then nothing was performed), step_timeout, desktop_lost or not_ready.
        """
        episode, guest = self._current(), self._running()
        performed = _until_terminal(actions)
        for action in performed:
            _check_on_screen(action, guest.screen)
        limit_s = self._timeouts.step_s + sum(a.seconds for a in performed if isinstance(a, Wait))
        try:
            async with asyncio.timeout(limit_s):
                on_screen = [action for action in performed if not isinstance(action, TERMINAL)]
                if on_screen:
                    await guest.client.act(on_screen, self._settle)
                picture = await _screenshot(guest)
        except GuestError as error:
            raise ProblemError(ProblemCode.DESKTOP_LOST, str(error)) from error
        except TimeoutError as error:
            detail = f"the guest did not finish a step in {limit_s:g} s"
            raise await self._blamed(ProblemCode.STEP_TIMEOUT, detail) from error
        episode.last_action = performed[-1] if performed else episode.last_action
        return picture

    async def evaluate(self) -> float:
        """OSWorld's score in [0, 1].

        Raises ProblemError evaluator_failed, evaluator_timeout, desktop_lost or not_ready.
        """
        episode = self._current()
        limit_s = self._timeouts.evaluate_s
        try:
            with phase("evaluate"):
                async with asyncio.timeout(limit_s):
                    return await self._score(episode, limit_s)
        except ProblemError as error:
            raise await self._blamed(error.code, error.problem.detail) from error
        except ProviderError as error:
            raise await self._blamed(ProblemCode.EVALUATOR_FAILED, str(error)) from error
        except TimeoutError as error:
            detail = f"{episode.task.evaluator.func} had no score after {limit_s:g} s"
            raise await self._blamed(ProblemCode.EVALUATOR_TIMEOUT, detail) from error

    async def close(self) -> None:
        """Stop the guest and leave nothing behind."""
        self._episode = None  # its folder goes with all others
        try:
            await self._abandon_guest()
        finally:
            scratch, self._scratch = self._scratch, None
            if scratch is not None:
                await asyncio.to_thread(scratch.remove)
        if self._owns_evaluators:
            await self._evaluators.close()

    async def _score(self, episode: _Episode, timeout_s: float) -> float:
        getters = GetterContext(
            guest=await self._guest_for_getters(episode.task),
            sources=self._sources,
            cache_dir=episode.folder,
            pool=self._evaluators,
            timeout_s=timeout_s,
        )
        return await evaluate(
            episode.task,
            self._setup_context(episode, windows_may_be_missing=True),
            getters,
            self._evaluators,
            gave_up=isinstance(episode.last_action, Fail),
        )

    async def _guest_for_getters(self, task: Task) -> Guest:
        """The guest; with addresses if the task's getters need them, since most tasks open no port."""
        guest = self._running()
        configs = (config for term in task.evaluator.terms() for config in (term.result, term.expected))
        if guest.addresses == Addresses() and any(config and runs_upstream(config) for config in configs):
            guest = self._guest = await self._provider.expose(guest)
        return guest

    async def _abandon_guest(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            await self._provider.stop(guest)

    async def _blamed(self, code: ProblemCode, detail: str) -> ProblemError:
        """The failure, or desktop_lost when the guest does not even show its screen any more."""
        try:
            async with asyncio.timeout(_ALIVE_S):
                await self._running().client.screenshot()
        except (GuestError, TimeoutError):
            return ProblemError(ProblemCode.DESKTOP_LOST, detail)
        return ProblemError(code, detail)

    def _setup_context(self, episode: _Episode, *, windows_may_be_missing: bool = False) -> SetupContext:
        return SetupContext(
            guest=self._running(),
            sources=self._sources,
            cache_dir=episode.folder,
            windows_may_be_missing=windows_may_be_missing,
        )

    def _running(self) -> Guest:
        if self._guest is None:
            raise ProblemError(ProblemCode.NOT_READY, "the desktop is not started")
        return self._guest

    def _current(self) -> _Episode:
        if self._episode is None:
            raise ProblemError(ProblemCode.NOT_READY, "the desktop was not reset to a task")
        return self._episode

    async def _episode_folder(self) -> Path:
        if self._scratch is None:  # making it also removes what killed processes left
            self._scratch = await asyncio.to_thread(ScratchFolder, "arpo-episodes-")
        return Path(tempfile.mkdtemp(dir=self._scratch.path))

    async def _end_episode(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, episode.folder)


def _until_terminal(actions: Sequence[Action]) -> list[Action]:
    performed: list[Action] = []
    for action in actions:
        performed.append(action)
        if isinstance(action, TERMINAL):
            break
    return performed


def _check_on_screen(action: Action, screen: tuple[int, int]) -> None:
    points: list[tuple[int, int]] = []
    if isinstance(action, Click | Move | Drag | Scroll):
        points.append((action.x, action.y))
    if isinstance(action, Drag):
        points.append((action.to_x, action.to_y))
    for x, y in points:
        if x >= screen[0] or y >= screen[1]:
            detail = f"{action.kind} at ({x}, {y}) is outside the screen of {screen[0]}x{screen[1]}"
            raise ProblemError(ProblemCode.INVALID_ACTION, detail)


async def _screenshot(guest: Guest) -> bytes:
    with phase("screenshot"):
        return await guest.client.screenshot()
