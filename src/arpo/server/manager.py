"""Sessions at work: runs what the state machines decide, and gives every desktop back.

Invariants
- Every desktop call runs as a task of its own under a time-out: a client that hangs up stops nothing, and its
  retry joins the call that is running.
- A session holds its desktop from its creation until it fails, is closed or falls silent, whichever comes
  first.
- A desktop whose call was interrupted is given back as lost: it may still be at work on the old session.
- When the manager is left, no session holds a desktop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from arpo.config.sections import Timeouts
from arpo.protocol.actions import TERMINAL, Action, Wait
from arpo.protocol.messages import (
    Observation,
    PoolStatus,
    SessionCreated,
    SessionList,
    SessionOptions,
    SessionState,
    SessionView,
    StepReply,
    StepRequest,
)
from arpo.protocol.problems import Fault, Problem, ProblemCode, ProblemError
from arpo.server.callers import Caller
from arpo.server.calls import call, score
from arpo.server.measured import Measurement, measured
from arpo.server.metrics import ServerMetrics, counts
from arpo.server.overview import pool_status, session_list
from arpo.server.pool import DesktopPool, Slot, SlotState, Verdict
from arpo.server.registry import CreationKey, Entry, Operation, SessionRegistry
from arpo.server.screenshots import Encoder
from arpo.server.sessions import OVER, RUNNING, Decision, Session
from arpo.tasks.model import Task
from arpo.telemetry import names
from arpo.telemetry.phases import phase

log = logging.getLogger(__name__)

REAPER_TICK_S = 1.0


@dataclass(eq=False)
class SessionManager:
    """The sessions of one env-server. Use `running_manager`.

    Methods raise ProblemError. Calls about a session count as a sign of life from its client. sessions_per_caller:
    how many sessions that are not closed one caller may have; None: no limit but the desktops.
    """

    pool: DesktopPool
    metrics: ServerMetrics
    sessions_per_caller: int | None
    _timeouts: Timeouts
    _tasks: asyncio.TaskGroup
    _clock: Callable[[], float]
    _leases: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _sessions: SessionRegistry = field(default_factory=SessionRegistry)
    _draining: bool = False

    def __post_init__(self) -> None:
        self.metrics.watch(
            names.SERVER_SESSIONS,
            names.STATE,
            lambda: counts(
                (entry.session.state for entry in self._sessions.open()),
                [state for state in SessionState if state is not SessionState.CLOSED],
            ),
        )
        self.metrics.watch(
            names.SERVER_DESKTOPS,
            names.STATE,
            lambda: counts((desktop.state for desktop in self.pool.view()), SlotState),
        )

    def create(
        self, task: Task, options: SessionOptions, caller: Caller, creation: CreationKey | None = None
    ) -> SessionCreated:
        """Lease a desktop and begin its reset; returns at once.

        creation: the same one again is answered with the same session. Raises capacity or start_failed.
        """
        entry = None if creation is None else self._sessions.created_with(creation, caller)
        if entry is None:
            entry = self._create(task, options, caller, creation)
        session = entry.session
        with self._request(session.id, caller):  # to send a creation again is a sign of life, too
            return SessionCreated(session_id=session.id, lease=session.lease, state=session.state)

    async def view(self, session_id: str, caller: Caller, wait_s: float = 0.0) -> SessionView:
        """The session; waits up to `wait_s` seconds for its desktop to come to rest."""
        with self._request(session_id, caller) as entry:
            await self._at_rest(entry, wait_s)
            return entry.session.view()

    async def step(
        self, session_id: str, caller: Caller, request: StepRequest, wait_s: float
    ) -> StepReply | None:
        """Apply actions once per seq, however often the same step is sent; None while they are still being applied
        after `wait_s` seconds: send the step again.
        """
        with self._request(session_id, caller) as entry:
            session = entry.session
            decision = session.begin_step(request)
            if decision is Decision.START:
                slot = self._ready_slot(entry)
                self._run(entry, f"step {request.seq}", self._step(entry, slot, request.actions))
            else:
                self.metrics.step_repeated()
            if decision is Decision.REPEAT:
                return session.reply(request.seq)
            operation = entry.operation
            await self._at_rest(entry, wait_s)
            if operation is not None and not operation.done():
                return None
            _raise_refusal(operation)
            return session.reply(request.seq)

    async def evaluate(self, session_id: str, caller: Caller, lease: int, wait_s: float) -> float | None:
        """The score; None when the evaluation is still running after `wait_s` seconds. It runs once, however
        often asked.
        """
        with self._request(session_id, caller) as entry:
            session = entry.session
            if session.begin_evaluate(lease) is Decision.START:
                self._run(entry, "evaluate", self._evaluate(entry, self._ready_slot(entry)))
            await self._at_rest(entry, wait_s)
            session.check_alive()
            return session.score

    def heartbeat(self, session_id: str, caller: Caller, lease: int) -> None:
        """The client still wants its session."""
        with self._request(session_id, caller) as entry:
            entry.session.check_lease(lease)
            entry.session.check_alive()

    def release(self, session_id: str, caller: Caller, lease: int | None = None) -> None:
        """Close a session; closing it again is no error."""
        entry = self._sessions.find(session_id, caller)
        if entry.session.state is SessionState.CLOSED:
            return
        if lease is not None:
            entry.session.check_lease(lease)
        self._close(entry, "its client released it" if entry.owner == caller.name else "an operator ended it")

    def measurement(self, session_id: str, caller: Caller, operation: str) -> Measurement | None:
        """What an operation spent its time on, the session's last one, `reset`, `evaluate` or `step <seq>`; None for an
        earlier one.
        """
        last = self._sessions.find(session_id, caller).measurement
        return last if last is not None and last.operation == operation else None

    def sessions_of(self, caller: Caller) -> SessionList:
        """The caller's sessions that are not closed; everybody's for an admin."""
        seen = (entry for entry in self._sessions.open() if caller.is_admin or entry.owner == caller.name)
        return session_list(seen, self._clock())

    def pool_status(self) -> PoolStatus:
        """The desktops, and which session holds which."""
        return pool_status(self.pool, self._sessions.open())

    def reset_pool(self, *, end_sessions: bool) -> None:
        """Put a fresh desktop in every place; leased ones are replaced when they come back, which is at once when
        the sessions are ended, too.
        """
        why = "an operator reset the pool"
        self.pool.reset_all(why)
        if end_sessions:
            for entry in list(self._sessions.alive()):
                self._fail(entry, ProblemError(ProblemCode.DESKTOP_LOST, why), Verdict.LOST)

    def check_open(self) -> None:
        """Raises ProblemError: why no session can be created now, desktops aside."""
        if self._draining:
            raise ProblemError(ProblemCode.CAPACITY, "the env-server is shutting down", retry_after_s=5.0)

    async def drain(self, grace_s: float) -> None:
        """Take no new work, let running steps and evaluations end for `grace_s` seconds, then fail what is
        left.
        """
        self._draining = True
        self.pool.drain()
        for entry in list(self._sessions.alive()):
            if entry.session.state is SessionState.RESETTING:
                self._fail(entry, self._shutting_down(), Verdict.LOST)
        running = [e.operation for e in self._sessions.alive() if e.operation and e.session.state in RUNNING]
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        for entry in list(self._sessions.alive()):
            self._fail(entry, self._shutting_down(), Verdict.LOST)

    # Desktop calls

    async def _reset(self, entry: Entry, slot: Slot, task: Task) -> Problem | None:
        try:
            png = await call(
                entry.session, slot.desktop.reset(task), self._timeouts.reset_s, ProblemCode.RESET_FAILED
            )
            observation = await self._observe(entry, png, self._timeouts.reset_s, ProblemCode.RESET_FAILED)
        except ProblemError as error:
            self._fail(entry, error, _after_failed_reset(error))
            return error.problem
        self.pool.reset_worked(slot)
        entry.session.reset_ended(observation)
        return None

    async def _step(self, entry: Entry, slot: Slot, actions: Sequence[Action]) -> Problem | None:
        # Waiting that the agent asked for is no slowness of the desktop.
        limit_s = self._timeouts.step_s + sum(a.seconds for a in actions if isinstance(a, Wait))
        try:
            png = await call(
                entry.session,
                slot.desktop.execute(actions),
                limit_s,
                ProblemCode.DESKTOP_LOST,
                late=ProblemCode.STEP_TIMEOUT,
            )
            observation = await self._observe(entry, png, limit_s, ProblemCode.DESKTOP_LOST)
        except ProblemError as error:
            if error.fault is Fault.CLIENT:
                entry.session.refused()
            else:
                self._fail(entry, error, Verdict.LOST)
            return error.problem
        entry.session.step_applied(observation, terminal=any(isinstance(a, TERMINAL) for a in actions))
        return None

    async def _evaluate(self, entry: Entry, slot: Slot) -> Problem | None:
        try:
            entry.session.evaluated(
                await call(
                    entry.session,
                    score(slot.desktop),
                    self._timeouts.evaluate_s,
                    ProblemCode.EVALUATOR_FAILED,
                    late=ProblemCode.EVALUATOR_TIMEOUT,
                )
            )
        except ProblemError as error:
            finished = error.code is ProblemCode.EVALUATOR_FAILED
            self._fail(entry, error, Verdict.USED if finished else Verdict.LOST)
            return error.problem
        return None

    async def _observe(self, entry: Entry, png: bytes, limit_s: float, failed: ProblemCode) -> Observation:
        with phase("encode"):
            return await call(entry.session, entry.encoder.observe(png), limit_s, failed)

    # The life of an entry

    def _create(
        self, task: Task, options: SessionOptions, caller: Caller, creation: CreationKey | None
    ) -> Entry:
        self.check_open()
        self._check_share(caller)
        slot = self.pool.lease()
        now = self._clock()
        entry = Entry(
            session=Session(self._sessions.new_id(), next(self._leases), options, now),
            owner=caller.name,
            task_id=task.id,
            created=now,
            encoder=Encoder(options.screenshot),
            slot=slot,
            creation=creation,
        )
        self._sessions.add(entry)
        self._run(entry, "reset", self._reset(entry, slot, task))
        log.info(
            "session %s of %s: task %r on desktop %d for %r",
            entry.session.id, caller.name, task.id, slot.index, options.client_id,
        )  # fmt: skip
        return entry

    def _check_share(self, caller: Caller) -> None:
        share = self.sessions_per_caller
        # Failed ones count until they are closed: a client that leaves them lying about makes no more of them.
        if share is not None and sum(e.owner == caller.name for e in self._sessions.open()) >= share:
            raise ProblemError(
                ProblemCode.CAPACITY, f"{caller.name} has {share} sessions, its share", retry_after_s=1.0
            )

    def _run(self, entry: Entry, name: str, work: Coroutine[None, None, Problem | None]) -> None:
        entry.operation = self._tasks.create_task(measured(entry, name, work, self.metrics))

    async def _at_rest(self, entry: Entry, wait_s: float) -> None:
        if entry.operation is not None and entry.session.state in RUNNING:
            await asyncio.wait({entry.operation}, timeout=wait_s)

    def _fail(self, entry: Entry, error: ProblemError, verdict: Verdict) -> None:
        log.warning("session %s failed: %s", entry.session.id, error)
        entry.session.fail(error.problem)
        self._give_back(entry, verdict, error.problem.detail)

    def _close(self, entry: Entry, why: str) -> None:
        log.info("session %s closed: %s", entry.session.id, why)
        entry.session.close(why)
        self._give_back(entry, Verdict.USED, why)
        self._sessions.close(entry)

    def _give_back(self, entry: Entry, verdict: Verdict, reason: str) -> None:
        entry.encoder = Encoder(entry.session.options.screenshot)  # its last picture is of no more use
        slot, entry.slot = entry.slot, None
        if slot is None:
            return
        operation = entry.operation
        if operation is None or operation.done() or operation is asyncio.current_task():
            self.pool.give_back(slot, verdict, reason)
        else:
            operation.cancel()
            operation.add_done_callback(
                lambda _: self.pool.give_back(slot, Verdict.LOST, f"interrupted: {reason}")
            )

    def _ready_slot(self, entry: Entry) -> Slot:
        """The desktop for a call that the session has just decided to start."""
        if self._draining:
            entry.session.refused()
            raise self._shutting_down()
        if entry.slot is None:
            raise RuntimeError(f"session {entry.session.id} is alive without a desktop")
        return entry.slot

    @contextmanager
    def _request(self, session_id: str, caller: Caller) -> Iterator[Entry]:
        entry = self._sessions.find(session_id, caller)
        entry.session.request_begins(self._clock())
        try:
            yield entry
        finally:
            entry.session.request_ends(self._clock())

    def _shutting_down(self) -> ProblemError:
        return ProblemError(ProblemCode.BACKEND_LOST, "the env-server is shutting down")

    async def _reap(self) -> None:
        """Close sessions whose clients have fallen silent."""
        while True:
            shortest = min(
                (entry.session.options.idle_timeout_s for entry in self._sessions.open()),
                default=REAPER_TICK_S,
            )
            await asyncio.sleep(min(REAPER_TICK_S, max(shortest / 2, 0.05)))
            now = self._clock()
            for entry in [e for e in self._sessions.open() if e.session.idle_at(now)]:
                if entry.session.state not in OVER:
                    self.metrics.session_reaped()
                self._close(entry, f"no request for {entry.session.options.idle_timeout_s:g} s")

    async def _leave(self, reaper: asyncio.Task[None]) -> None:
        reaper.cancel()
        await self.drain(grace_s=0.0)
        running = [entry.operation for entry in self._sessions.all() if entry.operation]
        if running:
            await asyncio.wait(running)


def _after_failed_reset(error: ProblemError) -> Verdict:
    """What a failed reset says about its desktop."""
    match error.code:
        case ProblemCode.DESKTOP_LOST:
            return Verdict.LOST
        case ProblemCode.SETUP_FAILED:
            # The guest answers and will be cleaned: what failed is a download, say. Were that held against the
            # desktop, one task with a dead link would put them all into quarantine.
            return Verdict.USED
        case _:
            # A task that the desktop refuses says nothing about the desktop.
            return Verdict.USED if error.fault is Fault.CLIENT else Verdict.RESET_FAILED


def _raise_refusal(operation: Operation | None) -> None:
    if operation is not None and operation.done() and not operation.cancelled():
        problem = operation.result()
        if problem is not None:
            raise ProblemError.of(problem)


@asynccontextmanager
async def running_manager(
    pool: DesktopPool,
    timeouts: Timeouts,
    *,
    metrics: ServerMetrics | None = None,
    sessions_per_caller: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[SessionManager]:
    """A manager with its reaper. At the end running calls are cancelled and every desktop is given back."""
    async with asyncio.TaskGroup() as tasks:
        manager = SessionManager(
            pool, metrics or ServerMetrics(), sessions_per_caller, timeouts, tasks, clock
        )
        reaper = tasks.create_task(manager._reap())
        try:
            yield manager
        finally:
            await manager._leave(reaper)
