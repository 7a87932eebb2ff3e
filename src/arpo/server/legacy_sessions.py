"""The legacy API's implicit sessions: one for each caller, on the sessions that everybody else uses.

Invariants
- A caller has one episode; a reset ends the one before, whatever it is doing.
- The calls about an episode run one after the other. A step that is asked for again while it runs, or after its client
  was seen to hang up, is answered and not performed again.
- A score is the evaluator's and a format reward the policy's; what fails otherwise is raised as a ProblemError.
- An episode, its screenshots included, is forgotten once its caller has been silent for the idle time-out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from arpo.agent.grammar import FormatError
from arpo.agent.profiles import ProfileName, get_profile
from arpo.protocol.messages import (
    MAX_IDLE_TIMEOUT_S,
    SessionCreated,
    SessionOptions,
    SessionState,
    StepReply,
    StepRequest,
)
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.server.callers import Caller
from arpo.server.legacy_episode import LegacyEpisode
from arpo.server.legacy_messages import MAX_PIXELS, MIN_PIXELS, LegacyMessage, LegacyObservation
from arpo.server.manager import SessionManager
from arpo.tasks.model import Task
from arpo.tasks.validate import parse_task

log = logging.getLogger(__name__)

HungUp = Callable[[], Awaitable[bool]]
"""Whether the client of a request is known to be gone."""

_POLL_S = 25.0
_PAUSE_S = 0.5


@dataclass(frozen=True)
class LegacySettings:
    """How the legacy API behaves.

    profile: how the policy speaks. max_steps: actions in an episode. idle_timeout_s: silence that ends an episode; long,
    because these clients send no heartbeats. reset_limit_s: for a reset, the wait for a free desktop included; below
    the 1200 s after which these clients give up. Raises ConfigError for an idle time-out that no session can have.
    """

    profile: ProfileName = "uitars-1.5"
    max_steps: int = 16
    idle_timeout_s: float = 1800.0
    reset_limit_s: float = 1140.0

    def __post_init__(self) -> None:
        if not 0 < self.idle_timeout_s <= MAX_IDLE_TIMEOUT_S:
            raise ConfigError(
                f"legacy idle time-out {self.idle_timeout_s:g} s; fix: more than 0 and at most {MAX_IDLE_TIMEOUT_S:g} s"
            )


@dataclass(frozen=True)
class Opened:
    """How a reset ended. failure: why there is no episode."""

    reply: LegacyObservation
    failure: ProblemError | None = None


@dataclass(eq=False)
class _Turn:
    """A step. reply: once it was performed. delivered: its client was there to take the reply."""

    prediction: str
    reply: LegacyObservation | None = None
    delivered: bool = False


@dataclass(eq=False)
class _Attempt:
    """A reset and everything after it. session is there while the attempt holds one."""

    caller: Caller
    document: dict[str, Any]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: Opened | None = None
    failure: ProblemError | None = None
    session: SessionCreated | None = None
    episode: LegacyEpisode | None = None
    turn: _Turn | None = None
    seq: int = 0
    score: float | None = None
    requests: int = 0
    forgetting: asyncio.TimerHandle | None = None


class LegacySessions:
    """The episodes of all callers. Methods raise ProblemError."""

    def __init__(self, manager: SessionManager, settings: LegacySettings) -> None:
        self._manager = manager
        self._settings = settings
        self._profile = get_profile(settings.profile, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        self._attempts: dict[str, _Attempt] = {}

    async def reset(self, caller: Caller, document: dict[str, Any], hung_up: HungUp) -> Opened:
        """End the caller's episode and begin one of a task; waits for a free desktop and its reset.

        The same reset, asked for again while it runs, joins it. A reset that fails, for a task that is wrong, too, is
        answered as an episode that is over, without messages. Raises start_failed, lease_lost (another reset came) or,
        when the server is stopping, capacity.
        """
        attempt = self._attempts.get(caller.name)
        if attempt is None or attempt.opened is not None or attempt.document != document:
            if attempt is not None:
                self._forget(attempt)
            attempt = self._attempts[caller.name] = _Attempt(caller, document)
        with self._request(attempt):
            async with attempt.lock:
                if attempt.opened is None:
                    attempt.opened = await self._open(attempt, hung_up)
                return attempt.opened

    async def step(self, caller: Caller, prediction: str, hung_up: HungUp) -> LegacyObservation:
        """Perform a prediction's actions. Raises invalid_request after the end of the episode, or why there is none."""
        attempt = self._attempt(caller)
        last = attempt.turn
        running = last if last is not None and last.reply is None else None
        with self._request(attempt):
            async with attempt.lock:
                turn = attempt.turn
                # Either it ran while this request waited, or nobody has seen its reply.
                again = turn is not None and (turn is running or not turn.delivered)
                if turn is None or turn.reply is None or turn.prediction != prediction or not again:
                    turn = attempt.turn = _Turn(prediction)
                    turn.reply = await self._perform(attempt, prediction)
                turn.delivered = turn.delivered or not await hung_up()
                return turn.reply

    async def evaluate(self, caller: Caller) -> float:
        """The score of the caller's episode; the same again when asked again. The desktop is given back."""
        attempt = self._attempt(caller)
        with self._request(attempt):
            async with attempt.lock:
                while attempt.score is None:
                    session = _session(attempt)
                    attempt.score = await self._manager.evaluate(
                        session.session_id, caller, session.lease, _POLL_S
                    )
                self._release(attempt)
                return attempt.score

    def history(self, caller: Caller) -> tuple[LegacyMessage, ...]:
        """The conversation of the caller's episode; empty without one."""
        attempt = self._attempts.get(caller.name)
        if attempt is None or attempt.episode is None:
            return ()
        with self._request(attempt):
            return attempt.episode.history

    # Reset

    async def _open(self, attempt: _Attempt, hung_up: HungUp) -> Opened:
        limit_s = self._settings.reset_limit_s
        try:
            task = parse_task(attempt.document, "task_config")
            async with asyncio.timeout(limit_s):
                attempt.session = await self._leased(attempt, task, hung_up)
                await self._begin(attempt, task, attempt.session)
        except ConfigError as error:
            attempt.failure = ProblemError(ProblemCode.INVALID_TASK, str(error))
        except TimeoutError:
            self._release(attempt)
            attempt.failure = ProblemError(
                ProblemCode.RESET_FAILED, f"no desktop was ready within {limit_s:g} s"
            )
        except ProblemError as error:
            if error.code in (ProblemCode.START_FAILED, ProblemCode.CAPACITY, ProblemCode.LEASE_LOST):
                self._release(attempt)
                raise
            attempt.failure = error
        if attempt.episode is not None:
            return Opened(attempt.episode.observation())
        log.warning(
            "legacy reset of %s to task %.200r failed: %r",
            attempt.caller.name,
            attempt.document.get("id"),
            str(attempt.failure),
        )
        return Opened(LegacyObservation(obs_messages=None, is_done=True), attempt.failure)

    async def _leased(self, attempt: _Attempt, task: Task, hung_up: HungUp) -> SessionCreated:
        """A session, once there is a desktop for it: these clients do not know that a server can be full."""
        options = SessionOptions(idle_timeout_s=self._settings.idle_timeout_s, client_id="legacy")
        while True:
            self._check_current(attempt)
            self._manager.check_open()
            try:
                return self._manager.create(task, options, attempt.caller)
            except ProblemError as error:
                if error.code is not ProblemCode.CAPACITY or await hung_up():
                    raise
                pause_s = error.problem.retry_after_s or _PAUSE_S
            await asyncio.sleep(pause_s)

    async def _begin(self, attempt: _Attempt, task: Task, session: SessionCreated) -> None:
        """Wait for the session's reset; the episode begins with its first screenshot."""
        view = await self._manager.view(session.session_id, attempt.caller, _POLL_S)
        while view.state is SessionState.RESETTING:
            view = await self._manager.view(session.session_id, attempt.caller, _POLL_S)
        if view.problem is not None:
            raise ProblemError.of(view.problem)
        if view.observation is None:
            raise RuntimeError(f"session {session.session_id} is {view.state.value} without an observation")
        attempt.episode = LegacyEpisode(
            self._profile,
            self._settings.max_steps,
            task.instruction,
            view.observation.screenshot,
        )

    # Step

    async def _perform(self, attempt: _Attempt, prediction: str) -> LegacyObservation:
        session, episode, caller = _session(attempt), attempt.episode, attempt.caller
        # Before anything is said about the policy: a session that fell silent or failed is not its fault.
        self._manager.heartbeat(session.session_id, caller, session.lease)
        if episode is None or episode.done:
            raise ProblemError(
                ProblemCode.INVALID_REQUEST, "the episode is over; fix: POST /env/evaluate or /env/reset"
            )
        try:
            actions = episode.plan(prediction)
        except FormatError as error:
            log.info("session %s: the prediction is no action: %s", session.session_id, error)
            return episode.misspoke(prediction)
        request = StepRequest(lease=session.lease, seq=attempt.seq + 1, actions=actions)
        reply: StepReply | None = None
        while reply is None:
            reply = await self._manager.step(session.session_id, caller, request, _POLL_S)
        attempt.seq = reply.seq
        return episode.acted(prediction, actions, reply.observation)

    # The life of an attempt

    def _attempt(self, caller: Caller) -> _Attempt:
        attempt = self._attempts.get(caller.name)
        if attempt is None:
            raise ProblemError(
                ProblemCode.LEASE_LOST,
                "this token has no episode: none was begun, it was silent for "
                f"{self._settings.idle_timeout_s:g} s, or the server was restarted; fix: POST /env/reset",
            )
        return attempt

    def _check_current(self, attempt: _Attempt) -> None:
        if self._attempts.get(attempt.caller.name) is not attempt:
            raise ProblemError(ProblemCode.LEASE_LOST, "another reset with the same token took its place")

    def _release(self, attempt: _Attempt) -> None:
        session, attempt.session = attempt.session, None
        if session is None:
            return
        try:
            self._manager.release(session.session_id, attempt.caller, session.lease)
        except ProblemError as error:
            if error.code is not ProblemCode.NOT_FOUND:  # closed so long ago that nobody remembers it
                raise

    def _forget(self, attempt: _Attempt) -> None:
        self._release(attempt)
        if attempt.forgetting is not None:
            attempt.forgetting.cancel()
        if self._attempts.get(attempt.caller.name) is attempt:
            del self._attempts[attempt.caller.name]

    @contextmanager
    def _request(self, attempt: _Attempt) -> Iterator[None]:
        """A request about an attempt; the silence after the last one has an end."""
        attempt.requests += 1
        if attempt.forgetting is not None:
            attempt.forgetting.cancel()
        try:
            yield
        finally:
            attempt.requests -= 1
            if not attempt.requests and self._attempts.get(attempt.caller.name) is attempt:
                loop = asyncio.get_running_loop()
                attempt.forgetting = loop.call_later(self._settings.idle_timeout_s, self._forget, attempt)


def _session(attempt: _Attempt) -> SessionCreated:
    """The attempt's session. Raises ProblemError: why it has none."""
    if attempt.failure is not None:
        raise ProblemError.of(attempt.failure.problem)
    if attempt.session is not None:
        return attempt.session
    if attempt.score is not None:
        raise ProblemError(
            ProblemCode.INVALID_REQUEST, "the episode was evaluated and is over; fix: POST /env/reset"
        )
    raise ProblemError(
        ProblemCode.LEASE_LOST, "this token has no episode: its reset did not end; fix: POST /env/reset"
    )
