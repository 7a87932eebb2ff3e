"""One session as a pure state machine: no I/O, no tasks, no clock; the time is passed in.

Invariants
- A step is applied at most once: its seq is either new (START), running (JOIN) or applied already (REPEAT).
- One seq means one list of actions: the same seq with others is refused, whoever sent it.
- A session is evaluated at most once; asking again gives the same score or the same problem.
- A session that failed or was closed never becomes anything else again, and says why for ever.

    resetting ──▶ ready ◀──▶ stepping
        │           │ ▲          │
        │           ▼ │          │
        │       evaluating       │
        ▼           ▼            ▼
        └────▶  failed ─▶ closed ◀── (from every state)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from arpo.protocol.actions import Action
from arpo.protocol.messages import (
    Observation,
    SessionOptions,
    SessionState,
    SessionView,
    StepReply,
    StepRequest,
)
from arpo.protocol.problems import Problem, ProblemCode, ProblemError

_S = SessionState

_NEXT: Mapping[SessionState, frozenset[SessionState]] = {
    _S.RESETTING: frozenset({_S.READY, _S.FAILED, _S.CLOSED}),
    _S.READY: frozenset({_S.STEPPING, _S.EVALUATING, _S.FAILED, _S.CLOSED}),
    _S.STEPPING: frozenset({_S.READY, _S.FAILED, _S.CLOSED}),
    _S.EVALUATING: frozenset({_S.READY, _S.FAILED, _S.CLOSED}),
    _S.FAILED: frozenset({_S.CLOSED}),
    _S.CLOSED: frozenset(),
}

RUNNING: frozenset[SessionState] = frozenset({_S.RESETTING, _S.STEPPING, _S.EVALUATING})
"""States in which the desktop is at work."""

OVER: frozenset[SessionState] = frozenset({_S.FAILED, _S.CLOSED})
"""States in which the session holds no desktop."""


FAILED_S = 60.0
"""Silence, in seconds, after which a failed session is closed: by then its client has heard why."""


class IllegalTransitionError(RuntimeError):
    """The shell around the state machine did something that it must never do: a bug, not an answer to a
    client.
    """


class Decision(Enum):
    """What to do with a step or an evaluation that was asked for."""

    START = "start"
    """It is new: run it."""
    JOIN = "join"
    """It is running: wait for its end."""
    REPEAT = "repeat"
    """It has ended: answer as then, touch nothing."""


class Session:
    """A session: its lease, its steps, its score, and how long it may stay silent.

    id: names it on the wire. lease: fencing integer; requests that carry another one are refused.
    now: seconds on any clock that never goes back; the same clock as in `request_begins` and `request_ends`.
    """

    def __init__(self, session_id: str, lease: int, options: SessionOptions, now: float) -> None:
        self.id = session_id
        self.lease = lease
        self.options = options
        self.state = SessionState.RESETTING
        self.seq = 0
        self.observation: Observation | None = None
        self.score: float | None = None
        self.problem: Problem | None = None
        self._reply: StepReply | None = None
        self._running: list[Action] = []  # the step that is running
        self._applied: list[Action] = []  # the step that `_reply` answers
        self._done = False
        self._open_requests = 0
        self._last_request = now

    # Reset

    def reset_ended(self, observation: Observation) -> None:
        """The desktop is in the task's initial state."""
        self._move(SessionState.READY)
        self.observation = observation

    # Steps

    def begin_step(self, request: StepRequest) -> Decision:
        """Decide about a step.

        Only the last applied seq can be repeated: a client that got the reply to seq n has no use for n - 1.
        Raises ProblemError lease_lost, seq_conflict, not_ready, invalid_request (after an evaluation), or why
        the session failed.
        """
        self.check_lease(request.lease)
        if self._reply is not None and request.seq == self._reply.seq:
            _check_same(request, self._applied)
            return Decision.REPEAT
        self.check_alive()
        if request.seq != self.seq + 1:
            raise ProblemError(
                ProblemCode.SEQ_CONFLICT,
                f"seq {request.seq} does not follow seq {self.seq}, the last one applied",
            )
        if self.state is SessionState.STEPPING:
            _check_same(request, self._running)
            return Decision.JOIN
        self._check_ready("step")
        if self.score is not None:
            raise ProblemError(
                ProblemCode.INVALID_REQUEST, "the session was evaluated; a new episode needs a new session"
            )
        self._move(SessionState.STEPPING)
        self._running = request.actions
        return Decision.START

    def step_applied(self, observation: Observation, *, terminal: bool) -> None:
        """The running step was applied. terminal: a terminal action was among its actions."""
        self._move(SessionState.READY)
        self.seq += 1
        self._done = self._done or terminal
        self._reply = StepReply(
            seq=self.seq, observation=_news(self.observation, observation), done=self._done
        )
        self.observation = observation
        self._applied = self._running

    def refused(self) -> None:
        """The running step or evaluation was refused before anything was touched; it may be asked again."""
        self._move(SessionState.READY)

    def reply(self, seq: int) -> StepReply:
        """The reply to the step applied last. Raises why there is none when the session ended instead."""
        if self._reply is None or self._reply.seq != seq:
            self.check_alive()
            raise IllegalTransitionError(f"no reply to seq {seq} is stored")
        return self._reply

    # Evaluation

    def begin_evaluate(self, lease: int) -> Decision:
        """Decide about an evaluation. Raises lease_lost, not_ready, or why the session failed."""
        self.check_lease(lease)
        self.check_alive()
        if self.score is not None:
            return Decision.REPEAT
        if self.state is SessionState.EVALUATING:
            return Decision.JOIN
        self._check_ready("evaluation")
        self._move(SessionState.EVALUATING)
        return Decision.START

    def evaluated(self, score: float) -> None:
        """The evaluator gave a score. Raises ProblemError evaluator_failed for what is no score in [0, 1]."""
        if not 0.0 <= score <= 1.0:  # NaN compares false
            raise ProblemError(
                ProblemCode.EVALUATOR_FAILED, f"the evaluator returned {score!r}, no score in [0, 1]"
            )
        self._move(SessionState.READY)
        self.score = score

    # The end

    def fail(self, problem: Problem) -> None:
        """The session cannot go on."""
        self._move(SessionState.FAILED)
        self.problem = problem

    def close(self, why: str) -> None:
        """Release the lease; closing twice is closing once. why: what later requests are told."""
        if self.state is SessionState.CLOSED:
            return
        self._move(SessionState.CLOSED)
        self.problem = ProblemError(ProblemCode.LEASE_LOST, f"the session is closed: {why}").problem
        self.observation = None
        self._reply = None
        self._running = self._applied = []

    # Questions

    def view(self) -> SessionView:
        """The session as `GET` shows it."""
        return SessionView(
            session_id=self.id,
            state=self.state,
            seq=self.seq,
            observation=self.observation if self.state is SessionState.READY else None,
            score=self.score,
            problem=self.problem,
        )

    def check_alive(self) -> None:
        """Raises ProblemError: why the session failed or was closed, if it did."""
        if self.state in OVER and self.problem is not None:
            raise ProblemError.of(self.problem)

    def check_lease(self, lease: int) -> None:
        """Raises ProblemError lease_lost unless `lease` is this session's and not released."""
        if self.state is SessionState.CLOSED:
            self.check_alive()
        if lease != self.lease:
            raise ProblemError(ProblemCode.LEASE_LOST, f"lease {lease} is not the lease of session {self.id}")

    # Silence

    def request_begins(self, now: float) -> None:
        """A request about this session came in."""
        self._open_requests += 1
        self._last_request = now

    def request_ends(self, now: float) -> None:
        """A request was answered."""
        self._open_requests -= 1
        self._last_request = now

    def idle_at(self, now: float) -> bool:
        """Whether the session has been silent for its idle time-out. An open request, a long poll say, is no
        silence.
        """
        patience_s = self.options.idle_timeout_s
        if self.state is SessionState.FAILED:
            patience_s = min(patience_s, FAILED_S)
        return self._open_requests == 0 and self.idle_s(now) >= patience_s

    def idle_s(self, now: float) -> float:
        """Seconds since the last request; 0 while one is open."""
        return 0.0 if self._open_requests else now - self._last_request

    def _check_ready(self, wanted: str) -> None:
        if self.state is not SessionState.READY:
            raise ProblemError(ProblemCode.NOT_READY, f"no {wanted} now: the session is {self.state.value}")

    def _move(self, to: SessionState) -> None:
        if to not in _NEXT[self.state]:
            raise IllegalTransitionError(f"session {self.id}: {self.state.value} → {to.value}")
        self.state = to


def _news(before: Observation | None, now: Observation) -> Observation:
    """What a client that has seen `before` must be sent: no picture that it has."""
    if before is None or before.screenshot.sha256 != now.screenshot.sha256:
        return now
    return Observation(screenshot=now.screenshot.model_copy(update={"data": b""}), unchanged=True)


def _check_same(request: StepRequest, actions: list[Action]) -> None:
    if request.actions != actions:
        raise ProblemError(
            ProblemCode.SEQ_CONFLICT, f"seq {request.seq} was sent before with other actions, and counts once"
        )
