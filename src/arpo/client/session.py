"""A leased desktop, seen from the trainer.

Invariants
- Actions are applied once: a step is sent again with the same seq, and the server tells repeats from new
  steps. No other step and no evaluation follows a step of which nobody knows whether it was applied.
- No request is silent for long: what takes longer than a poll is asked for again, and the server joins the two.
- An observation that a caller sees has its picture, also when the server did not send it again.
- While the session is open the server hears from it, however long the policy thinks; closing it ends that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from arpo.client.limits import ClientTimeouts
from arpo.client.timing import count_phases
from arpo.client.transport import Answer, Call, Transport
from arpo.protocol.actions import Action, Wait
from arpo.protocol.codec import readable
from arpo.protocol.messages import (
    EvaluateReply,
    EvaluateRequest,
    Lease,
    Observation,
    SessionState,
    SessionView,
    StepReply,
    StepRequest,
)
from arpo.protocol.problems import ProblemCode, ProblemError

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
"""Starts a task that may outlive its session; the client keeps it, and ends it when it is left."""

_RUNNING = frozenset({SessionState.RESETTING, SessionState.STEPPING, SessionState.EVALUATING})


class Session:
    """One session; made by `EnvClient.open_session` or `attach`, used as an async context manager or closed with
    `close`.

    id, lease: as the server names it; with both, `EnvClient.attach` takes the session up again. seq: the last step
    applied. observation: what the screen shows now. Methods raise ProblemError; after an environment fault the
    session is of no more use.
    """

    def __init__(
        self,
        transport: Transport,
        session_id: str,
        lease: int,
        timeouts: ClientTimeouts,
        idle_timeout_s: float,
        spawn: Spawn,
    ) -> None:
        self.id = session_id
        self.lease = lease
        self.seq = 0
        self._observation: Observation | None = None
        self._transport = transport
        self._timeouts = timeouts
        self._spawn = spawn
        self._path = f"/v1/sessions/{self.id}"
        self._unsettled: StepRequest | None = None
        self._heard = time.monotonic()
        self._idle_timeout_s = idle_timeout_s
        self._heartbeat: asyncio.Task[None] | None = None
        self._release: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def observation(self) -> Observation:
        """What the screen showed after the reset or the last step. `unchanged`: no pixel differs from what was seen
        before; the picture is there in any case.
        """
        if self._observation is None:
            raise RuntimeError("the session has not been reset yet")
        return self._observation

    async def wait_reset(self, asked: float | None = None) -> None:
        """Wait for the reset by long polls; `open_session` has done so. Raises why it failed.

        asked: when the session was asked for (`time.monotonic`), by default now.
        """
        asked = time.monotonic() if asked is None else asked
        count_phases(await self._begin(self._timeouts.reset_s, ProblemCode.RESET_FAILED), asked)

    async def resume(self) -> None:
        """Take up a session that another client object opened: its seq and what it shows, once its desktop is at
        rest; `attach` has done so. Raises why it is over, or lease_lost.
        """
        # A view shows any session of this caller; only a heartbeat tells whether the lease is right, too.
        await self._call("POST", "/heartbeat", Lease(lease=self.lease))
        limits = self._timeouts
        await self._begin(max(limits.reset_s, limits.step_s, limits.evaluate_s), ProblemCode.NOT_READY)

    async def step(self, actions: Sequence[Action], *, seq: int | None = None) -> StepReply:
        """Perform actions and see what came of it.

        A step that raised backend_lost, or step_timeout, or was cancelled, may or may not have been applied: the next
        call must be the same step again, which is safe.

        seq: the number under which this step was sent before the client was restarted and attached. If it is the
        last one applied, its reply comes again and nothing is performed; else it must be the next one, as without.
        Raises ProblemError seq_conflict for any other step.
        """
        try:
            request = StepRequest(
                lease=self.lease, seq=self.seq + 1 if seq is None else seq, actions=list(actions)
            )
        except ValidationError as error:
            raise ProblemError(ProblemCode.INVALID_ACTION, readable(error)) from error
        if self._unsettled not in (None, request):
            raise ProblemError(
                ProblemCode.SEQ_CONFLICT,
                f"nobody knows whether step {self._unsettled.seq} was applied; repeat it before another one",
            )
        self._unsettled = request
        waits_s = sum(action.seconds for action in request.actions if isinstance(action, Wait))
        try:
            answer = await self._finish(
                "/step", request, self._timeouts.step_s + waits_s, ProblemCode.STEP_TIMEOUT
            )
            reply = answer.read(StepReply)
            observation = await self._with_picture(reply.observation)
        except ProblemError as error:
            if error.code not in (ProblemCode.BACKEND_LOST, ProblemCode.STEP_TIMEOUT):
                self._unsettled = None
            raise
        self._unsettled = None
        self.seq = reply.seq
        self._observation = observation
        return reply.model_copy(update={"observation": observation})

    async def evaluate(self) -> float:
        """The task's score in [0, 1], however long its evaluators take. Asking again gives the same score.

        Raises ProblemError seq_conflict while nobody knows whether the last step was applied: what would be scored
        is then not known either.
        """
        if self._unsettled is not None:
            raise ProblemError(
                ProblemCode.SEQ_CONFLICT,
                f"nobody knows whether step {self._unsettled.seq} was applied; repeat it before the evaluation",
            )
        answer = await self._finish(
            "/evaluate",
            EvaluateRequest(lease=self.lease),
            self._timeouts.evaluate_s,
            ProblemCode.EVALUATOR_TIMEOUT,
        )
        return answer.read(EvaluateReply).score

    async def close(self) -> None:
        """Release the desktop; never raises a problem. Takes at most `close_s` seconds; what is not released by then,
        or by the time that this is cancelled, is released in the background.
        """
        if self._release is None:
            if self._heartbeat is not None:
                self._heartbeat.cancel()
            self._release = self._spawn(self._delete())
        await asyncio.wait({self._release}, timeout=self._timeouts.close_s)

    async def _begin(self, limit_s: float, late: ProblemCode) -> str:
        """Learn seq and picture from the server once the desktop is at rest, and keep the session from then on.

        Returns the server's account of the time, of the reset alone.
        """
        try:
            async with self._transport.contact.timeout(limit_s):
                while True:
                    answer = await self._call("GET", hold_s=self._timeouts.poll_s)
                    view = _sound(answer)
                    if view.state not in _RUNNING:
                        break
        except TimeoutError as error:
            raise ProblemError(
                late, f"the desktop of session {self.id} was not ready after {limit_s:g} s"
            ) from error
        if view.observation is None:
            raise ProblemError(
                ProblemCode.BACKEND_LOST, f"session {self.id} is {view.state.value} and shows nothing"
            )
        self.seq = view.seq
        self._observation = await self._with_picture(view.observation)
        self._heartbeat = asyncio.create_task(self._beat(), name=f"heartbeat of {self.id}")
        return answer.timing

    async def _finish(
        self, verb: str, request: StepRequest | EvaluateRequest, limit_s: float, late: ProblemCode
    ) -> Answer:
        """Submit an operation, and again while it is running: the server joins them. Raises `late` when it has not
        ended in time.
        """
        began = time.monotonic()
        try:
            async with self._transport.contact.timeout(limit_s):
                while True:
                    answer = await self._call("POST", verb, request, hold_s=self._timeouts.poll_s)
                    if answer.status != 202:
                        count_phases(answer.timing, began)
                        return answer
        except TimeoutError as error:
            raise ProblemError(
                late, f"{verb[1:]} of session {self.id} has not ended after {limit_s:g} s"
            ) from error

    async def _with_picture(self, observation: Observation) -> Observation:
        """The observation with its bytes: as they came, or of the picture before, or fetched."""
        picture = observation.screenshot
        if picture.data:
            if hashlib.sha256(picture.data).hexdigest() != picture.sha256:
                raise ProblemError(
                    ProblemCode.BACKEND_LOST, f"session {self.id}: a picture does not have its sha256"
                )
            return observation
        before = self._observation
        if before is None or before.screenshot.sha256 != picture.sha256:
            shown = _sound(await self._call("GET", hold_s=0.0)).observation
            if shown is None or not shown.screenshot.data or shown.screenshot.sha256 != picture.sha256:
                raise ProblemError(
                    ProblemCode.BACKEND_LOST,
                    f"session {self.id}: the server has no more the picture {picture.sha256}",
                )
            before = await self._with_picture(shown)
        return observation.model_copy(update={"screenshot": before.screenshot})

    async def _call(
        self,
        method: str,
        verb: str = "",
        message: StepRequest | EvaluateRequest | Lease | None = None,
        hold_s: float | None = None,
    ) -> Answer:
        call = Call(method, self._path + verb, message, hold_s=hold_s)
        answer = await self._transport.patient(call, self._timeouts.outage_s)
        self._heard = time.monotonic()
        return answer

    async def _beat(self) -> None:
        """Tell the server that the session is wanted, whenever it has heard nothing for a third of its
        patience.
        """
        beat_s = self._idle_timeout_s / 3
        while True:
            silent_s = time.monotonic() - self._heard
            if silent_s < beat_s:
                await asyncio.sleep(beat_s - silent_s)
                continue
            try:
                await self._call("POST", "/heartbeat", Lease(lease=self.lease))
            except ProblemError as error:
                # The next step will say so to the one who can act on it. Here only an outage may still pass, or a
                # token file that is being rewritten.
                log.debug("heartbeat of %s: %s", self.id, error)
                if error.code not in (ProblemCode.BACKEND_LOST, ProblemCode.UNAUTHORIZED):
                    return
                self._heard = time.monotonic()

    async def _delete(self) -> None:
        # Several attempts must fit into what a client that is being left waits for.
        read_s = min(self._timeouts.read_s, self._timeouts.close_s / 3)
        try:
            # After so long a silence the server has released it by itself.
            await self._transport.patient(
                Call("DELETE", self._path, lease=self.lease, read_s=read_s), self._idle_timeout_s
            )
        except ProblemError as error:
            # Gone already, or its server is: nothing holds the desktop any more, or the idle time-out ends it.
            log.debug("release of session %s: %s", self.id, error)


def _sound(answer: Answer) -> SessionView:
    """The session as the server sees it. Raises its problem."""
    view = answer.read(SessionView)
    if view.problem is not None:
        raise ProblemError.of(view.problem)
    return view
