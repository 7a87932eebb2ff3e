"""Random clients against a real env-server over a socket: what they are told and what was done to the desktops agrees
with a model, whatever they send and in whatever order.

Several callers (one of them an operator) send good, repeated, stale, foreign and simultaneous requests; clients vanish,
guests are lost, time passes. Desktops wait at gates where a rule says so, so that every state can be asked anything.
`ARPO_TEST_EXAMPLES` sets how many runs there are; `make test-long` makes more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from recorded_desktops import LoopThread
from session_callers import (
    ALICE,
    BOB,
    GATEWAY,
    NOBODY,
    OPS,
    TOKEN_FILE,
    Callers,
    raw_step,
    read,
    refused,
    shown,
    step_body,
)
from session_model import START, Episode

from arpo.protocol.actions import Action, Click, Fail, Finished, Hotkey, Move, Type
from arpo.protocol.problems import ProblemCode
from arpo.server.sessions import FAILED_S

EXAMPLES = int(os.environ.get("ARPO_TEST_EXAMPLES", "25"))
CAPACITY = 2
STRANGER = {ALICE: BOB, BOB: ALICE}

SAVE = Hotkey(keys=("ctrl", "s"))
TYPING: list[list[Action]] = [[Type(text="a"), SAVE], [Type(text="b"), SAVE], [Type(text="ab"), SAVE]]
VALID: list[list[Action]] = [
    *TYPING,
    [],
    [Move(x=5, y=470)],
    [Click(x=300, y=200), Type(text="c"), SAVE],
    [Type(text="b"), SAVE, Finished()],
    [Finished(), Type(text="never"), SAVE],
    [Fail(reason="no")],
    [Type(text="d"), Fail()],
]
OFF_SCREEN: list[Action] = [Type(text="x"), Click(x=640, y=10)]
"""Nothing of it may be performed."""
MALFORMED = [[{"kind": "click", "x": -1, "y": 0}], [{"kind": "sudo"}], "x"]

numbers = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 4])  # sessions that are alive come first
callers = st.sampled_from([ALICE, BOB])
goals = st.sampled_from(["", "a", "ab"])
valid = st.sampled_from(VALID)
steps = st.sampled_from([*VALID, OFF_SCREEN])
seldom = st.sampled_from([False, False, False, True])

Which = Callable[[Episode], bool]


def known(episode: Episode) -> bool:
    return True


def alive(episode: Episode) -> bool:
    return episode.alive


def busy(episode: Episode) -> bool:
    return episode.busy


def keyed(episode: Episode) -> bool:
    return episode.key is not None


def stepped(episode: Episode) -> bool:
    return episode.last_step is not None


def set_up(episode: Episode) -> bool:
    return episode.alive and episode.state != "resetting"


def free_to_step(episode: Episode) -> bool:
    return episode.state == "ready" and episode.score is None and not episode.guest_lost


def free_to_score(episode: Episode) -> bool:
    return free_to_step(episode) and not episode.gave_up


def some(which: Which) -> Callable[[SessionMachine], bool]:
    """Only when there is such a session."""
    return lambda machine: any(map(which, machine.c.episodes))


class SessionMachine(RuleBasedStateMachine):
    """The rules. `c` are the callers with their server, which is made anew for every run, and the model."""

    thread: LoopThread
    tokens: Path

    def __init__(self) -> None:
        super().__init__()
        self.c = Callers(self.thread, self.tokens, CAPACITY)

    def pick(self, number: int, which: Which = known) -> Episode:
        """One of such sessions: those that are alive first, then the latest."""
        found = [episode for episode in self.c.episodes if which(episode)]
        found.sort(key=lambda e: (not e.alive, -self.c.episodes.index(e)))
        return found[min(number, len(found) - 1)]

    # Creating

    @initialize(owner=callers, goal=goals)
    def begin(self, owner: str, goal: str) -> None:
        assert self.c.settled() == CAPACITY
        self.create(owner, goal, idle_s=100.0, key=False, held=False)

    @rule(owner=callers, goal=goals, idle_s=st.sampled_from([30.0, 100.0]), key=st.booleans(), held=seldom)
    def create(self, owner: str, goal: str, idle_s: float, key: bool, held: bool) -> None:
        free = self.c.settled()
        body = self.c.body(goal, idle_s)
        tag = body["task"]["id"]
        name = f"key-{tag}" if key else None
        if held:
            self.c.server.hold(tag)
        reply = self.c.create(owner, body, name)
        if not free:
            self.c.server.forget(tag)
            assert refused(reply, ProblemCode.CAPACITY).retry_after_s
            return
        episode = self.c.begun(reply, owner, goal, name, body)
        if not held:
            self.c.ready(episode)

    @precondition(some(keyed))
    @rule(number=numbers)
    def create_again(self, number: int) -> None:
        episode = self.pick(number, keyed)
        reply = self.c.create(episode.owner, episode.body, episode.key)
        episode.last_request = self.c.server.clock.now
        assert read(reply, 201) == {
            "session_id": episode.id,
            "lease": episode.lease,
            "state": episode.state,
        }
        other = self.c.create(episode.owner, self.c.body("other", 30.0), episode.key)
        refused(other, ProblemCode.INVALID_REQUEST)

    @rule(owner=callers, goal=goals, same=st.booleans())
    def create_twice_at_once(self, owner: str, goal: str, same: bool) -> None:
        """Two creations for one desktop, or one that is sent twice."""
        free = self.c.settled()
        bodies = [self.c.body(goal, 100.0) for _ in range(2)]
        key = None
        if same:
            bodies[1] = bodies[0]
            key = f"key-{bodies[0]['task']['id']}"
        replies = self.c.together(*(lambda b=b: self.c.create(owner, b, key) for b in bodies))
        made = [(r, b) for r, b in zip(replies, bodies, strict=True) if r.status_code == 201]
        assert len(made) == (2 * min(free, 1) if same else min(free, 2))
        for reply in replies:
            if reply.status_code != 201:
                refused(reply, ProblemCode.CAPACITY)
        if same and made:
            first, second = (read(reply, 201) for reply, _ in made)
            assert (first["session_id"], first["lease"]) == (second["session_id"], second["lease"])
            # The later one of the two may have found the session further on.
            made = [m for m in made if read(m[0], 201)["state"] == "resetting"][:1]
        begun = [self.c.begun(reply, owner, goal, key, body) for reply, body in made]
        for episode in begun:
            self.c.ready(episode)

    # Looking

    @precondition(some(known))
    @rule(number=numbers, operator=st.booleans())
    def poll(self, number: int, operator: bool) -> None:
        episode = self.pick(number)
        reply = self.c.about(episode, "GET", by=OPS if operator else "")
        assert read(reply, 200) == shown(episode)

    @precondition(some(known))
    @rule(number=numbers, stale=seldom)
    def heartbeat(self, number: int, stale: bool) -> None:
        episode = self.pick(number)
        lease = episode.lease + stale
        reply = self.c.about(episode, "POST", "/heartbeat", json={"lease": lease})
        wanted = episode.heartbeat_answer(lease)
        if wanted is None:
            assert (reply.status_code, reply.content) == (204, b"")
        else:
            refused(reply, wanted)

    @precondition(some(known))
    @rule(number=numbers, method=st.sampled_from(["GET", "step", "evaluate", "heartbeat", "DELETE"]))
    def stranger(self, number: int, method: str) -> None:
        """A caller to whom the session does not exist, one that may have none, and nobody."""
        episode = self.pick(number)
        verb, path = ("POST", f"/{method}") if method.islower() else (method, "")
        body: dict[str, Any] = {"lease": episode.lease}
        if method == "step":
            body = step_body(episode.lease, episode.seq + 1, TYPING[0])
        foreign = self.c.about(episode, verb, path, by=STRANGER[episode.owner], json=body)
        assert episode.id in refused(foreign, ProblemCode.NOT_FOUND).detail
        refused(self.c.about(episode, verb, path, by=GATEWAY, json=body), ProblemCode.FORBIDDEN)
        refused(self.c.about(episode, verb, path, by=NOBODY, json=body), ProblemCode.UNAUTHORIZED)

    @precondition(some(known))
    @rule(number=numbers)
    def unknown_session(self, number: int) -> None:
        episode = self.pick(number)
        life, _, rest = episode.id.partition(".")
        other = f"{life}.{(int(rest, 16) + 1) % 2**64:016x}"
        refused(self.c.send(episode.owner, "GET", f"/v1/sessions/{other}"), ProblemCode.NOT_FOUND)
        earlier = f"{int(life, 16) ^ 1:08x}.{rest}"
        refused(self.c.send(episode.owner, "GET", f"/v1/sessions/{earlier}"), ProblemCode.BACKEND_LOST)

    # Stepping

    @precondition(some(known))
    @rule(number=numbers, several=st.lists(steps, min_size=1, max_size=4))
    def next_steps(self, number: int, several: list[list[Action]]) -> None:
        episode = self.pick(number)
        for actions in several:
            seq = episode.seq + 1
            self.c.stepped(episode, seq, actions, self.c.step(episode, seq, actions))

    @precondition(some(known))
    @rule(number=numbers, actions=steps, offset=st.sampled_from([-1, 0, 1, 2, 3]), stale=seldom)
    def wrong_step(self, number: int, actions: list[Action], offset: int, stale: bool) -> None:
        """An old seq, a future one, other actions under one that was applied; perhaps with another lease."""
        episode = self.pick(number)
        seq, lease = max(1, episode.seq + offset), episode.lease + stale
        if episode.step_answer(lease, seq, actions) != START:
            self.c.stepped(episode, seq, actions, self.c.step(episode, seq, actions, lease), lease)

    @precondition(some(stepped))
    @rule(number=numbers, times=st.integers(1, 3))
    def repeat_last_step(self, number: int, times: int) -> None:
        episode = self.pick(number, stepped)
        for _ in range(times):
            reply = self.c.step(episode, episode.seq, episode.last_step)
            self.c.stepped(episode, episode.seq, episode.last_step, reply)

    @precondition(some(free_to_step))
    @rule(number=numbers)
    def off_screen_then_valid(self, number: int) -> None:
        episode = self.pick(number, free_to_step)
        for actions in (OFF_SCREEN, TYPING[0]):
            seq = episode.seq + 1
            self.c.stepped(episode, seq, actions, self.c.step(episode, seq, actions))

    @precondition(some(known))
    @rule(number=numbers, actions=st.sampled_from(MALFORMED))
    def malformed_step(self, number: int, actions: object) -> None:
        episode = self.pick(number)
        body = {"lease": episode.lease, "seq": episode.seq + 1, "actions": actions}
        path = f"/v1/sessions/{episode.id}/step"
        refused(self.c.send(episode.owner, "POST", path, json=body), ProblemCode.INVALID_ACTION)

    @precondition(some(free_to_step))
    @rule(number=numbers, actions=valid)
    def step_whose_reply_is_lost(self, number: int, actions: list[Action]) -> None:
        """The connection ends when the step has been performed; the client sends it again."""
        episode = self.pick(number, free_to_step)
        seq, performed = episode.seq + 1, self.c.server.recorder(episode.tag).performed
        address = urlsplit(self.c.server.url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(raw_step(episode, seq, actions))
            episode.last_request = self.c.server.clock.now
            episode.applied(actions)
            if len(performed) == len(episode.performed):
                connection.recv(1)  # perhaps there is nothing to perform: then only the answer tells
            deadline = time.monotonic() + 10
            while len(performed) < len(episode.performed):
                assert time.monotonic() < deadline, "the step is not performed"
                time.sleep(0.001)
        assert read(self.c.step(episode, seq, actions), 200) == episode.last_reply

    @precondition(some(free_to_step))
    @rule(number=numbers, actions=steps)
    def same_step_from_two_threads(self, number: int, actions: list[Action]) -> None:
        episode = self.pick(number, free_to_step)
        seq = episode.seq + 1
        one, other = self.c.together(*2 * [lambda: self.c.step(episode, seq, actions)])
        self.c.stepped(episode, seq, actions, one)
        self.c.stepped(episode, seq, actions, other)

    @precondition(some(free_to_step))
    @rule(number=numbers, turned=st.booleans())
    def two_steps_race_for_a_seq(self, number: int, turned: bool) -> None:
        episode = self.pick(number, free_to_step)
        seq, rivals = episode.seq + 1, [TYPING[turned], TYPING[not turned]]
        replies = self.c.together(*(lambda a=a: self.c.step(episode, seq, a) for a in rivals))
        won = [reply.status_code == 200 for reply in replies]
        assert sorted(won) == [False, True], [reply.text for reply in replies]
        self.c.stepped(episode, seq, rivals[won.index(True)], replies[won.index(True)])
        self.c.stepped(episode, seq, rivals[won.index(False)], replies[won.index(False)])

    @precondition(some(free_to_step))
    @rule(number=numbers, actions=st.sampled_from(TYPING))
    def hold_step(self, number: int, actions: list[Action]) -> None:
        """A step that takes its time."""
        episode = self.pick(number, free_to_step)
        self.c.server.hold(episode.tag)
        reply = self.c.step(episode, episode.seq + 1, actions, wait_s=0)
        episode.state, episode.running = "stepping", actions
        assert read(reply, 202) == shown(episode)

    # Scoring

    @precondition(some(known))
    @rule(number=numbers, stale=seldom, times=st.integers(1, 2))
    def score(self, number: int, stale: bool, times: int) -> None:
        episode = self.pick(number)
        lease = episode.lease + stale
        for _ in range(times):
            self.c.scored(episode, lease, self.c.evaluate(episode, lease))

    @precondition(some(free_to_score))
    @rule(number=numbers)
    def hold_evaluation(self, number: int) -> None:
        """An evaluation that takes its time."""
        episode = self.pick(number, free_to_score)
        self.c.server.hold(episode.tag)
        reply = self.c.evaluate(episode, wait_s=0)
        episode.state = "evaluating"
        assert read(reply, 202) == shown(episode)

    @precondition(some(free_to_step))
    @rule(number=numbers)
    def evaluation_from_two_threads(self, number: int) -> None:
        episode = self.pick(number, free_to_step)
        for reply in self.c.together(*2 * [lambda: self.c.evaluate(episode)]):
            self.c.scored(episode, episode.lease, reply)

    @precondition(some(free_to_step))
    @rule(number=numbers, actions=st.sampled_from(TYPING))
    def a_step_and_an_evaluation_race(self, number: int, actions: list[Action]) -> None:
        """The step is in the score, or it is refused.

        However that ends, the session has made a step and is scored: what can come next must not depend on chance.
        """
        episode = self.pick(number, free_to_step)
        self.c.stepped(episode, episode.seq + 1, [], self.c.step(episode, episode.seq + 1, []))
        seq = episode.seq + 1
        step, score = self.c.together(
            lambda: self.c.step(episode, seq, actions), lambda: self.c.evaluate(episode)
        )
        if step.status_code == 200:
            self.c.stepped(episode, seq, actions, step)
        if score.status_code == 200:
            self.c.scored(episode, episode.lease, score)
        else:
            assert step.status_code == 200
            refused(score, ProblemCode.NOT_READY)
            self.c.scored(episode, episode.lease, self.c.evaluate(episode))
        if step.status_code != 200:
            during = step.status_code == 409
            refused(step, ProblemCode.NOT_READY if during else ProblemCode.INVALID_REQUEST)

    # Going on, and ending

    @precondition(some(busy))
    @rule(number=numbers, waiting=st.booleans())
    def let_go(self, number: int, waiting: bool) -> None:
        """What was held goes on; perhaps its client is waiting for it."""
        episode = self.pick(number, busy)
        state, seq, actions = episode.state, episode.seq + 1, episode.running
        ask = {
            "resetting": lambda: self.c.about(episode, "GET", params={"wait_s": 20}),
            "stepping": lambda: self.c.step(episode, seq, actions, wait_s=20),
            "evaluating": lambda: self.c.evaluate(episode, wait_s=20),
        }[state]
        answer = self.c.meanwhile(ask) if waiting else ask
        self.c.server.let_go(episode.tag)
        reply = answer()
        episode.state = "ready"
        if state == "resetting":
            assert read(reply, 200) == shown(episode)
        elif state == "stepping":
            self.c.stepped(episode, seq, actions, reply)
        else:
            self.c.scored(episode, episode.lease, reply)

    @precondition(some(set_up))
    @rule(number=numbers)
    def lose_guest(self, number: int) -> None:
        episode = self.pick(number, set_up)
        self.c.server.lose(episode.tag)
        episode.guest_lost = True

    @precondition(some(known))
    @rule(number=numbers, how=st.sampled_from(["owner", "lease", "operator", "stale"]), waiting=st.booleans())
    def delete(self, number: int, how: str, waiting: bool) -> None:
        self._delete(self.pick(number), how, waiting)

    def _delete(self, episode: Episode, how: str = "owner", waiting: bool = False) -> None:
        seq, running = episode.seq + 1, episode.running
        answer = None
        if waiting and episode.state == "stepping":
            answer = self.c.meanwhile(lambda: self.c.step(episode, seq, running, wait_s=20))
        if how == "stale" and episode.state != "closed":
            reply = self.c.about(episode, "DELETE", params={"lease": episode.lease + 1})
            refused(reply, ProblemCode.LEASE_LOST)
        params = {"lease": episode.lease} if how == "lease" else {}
        reply = self.c.about(episode, "DELETE", by=OPS if how == "operator" else "", params=params)
        assert (reply.status_code, reply.content) == (204, b"")
        self.c.server.forget(episode.tag)
        episode.closed()
        if answer is not None:
            refused(answer(), ProblemCode.LEASE_LOST)

    @rule(seconds=st.sampled_from([1.0, 29.0, 29.0, 31.0, 101.0]))
    def pass_time(self, seconds: float) -> None:
        self.c.server.pass_time(seconds)
        now = self.c.server.clock.now
        for episode in self.c.episodes:
            patience_s = min(episode.idle_s, FAILED_S) if episode.state == "failed" else episode.idle_s
            if episode.state != "closed" and now - episode.last_request >= patience_s:
                self.c.server.forget(episode.tag)
                episode.closed()

    @rule(sessions=seldom)
    def reset_pool(self, sessions: bool) -> None:
        refused(self.c.send(ALICE, "POST", "/v1/pool/reset", json={"sessions": True}), ProblemCode.FORBIDDEN)
        read(self.c.send(OPS, "POST", "/v1/pool/reset", json={"sessions": sessions}), 200)
        for episode in self.c.episodes:
            if sessions and episode.alive:
                self.c.server.forget(episode.tag)
                episode.failed(ProblemCode.DESKTOP_LOST)

    # What always holds

    @invariant()
    def operators_see_what_the_model_says_and_a_desktop_has_one_holder(self) -> None:
        listed = read(self.c.send(OPS, "GET", "/v1/sessions"), 200)["sessions"]
        for summary in listed:
            problem = summary["problem"]
            summary["problem"] = problem and problem["code"]
        names = ("session_id", "state", "seq", "caller", "task_id", "score", "problem")
        assert sorted([s[name] for name in names] for s in listed) == sorted(
            [e.id, e.state, e.seq, e.owner, e.tag, e.score, e.problem]
            for e in self.c.episodes
            if e.state != "closed"
        )
        held = [s["desktop"] for s in listed if s["desktop"] is not None]
        assert len(held) == len(set(held)) == sum(e.alive for e in self.c.episodes) <= CAPACITY

    @invariant()
    def desktops_were_done_to_what_was_acknowledged_and_nothing_else(self) -> None:
        recorders = self.c.server.recorders()
        done = {r.tag: (r.performed, r.evaluations) for r in recorders if r.tag}
        assert len(done) == sum(bool(r.tag) for r in recorders), "one task was set up on two guests"
        episodes = self.c.episodes
        assert done == {e.tag: (e.performed, e.evaluations) for e in episodes if e.tag in done}
        assert all(e.tag in done for e in episodes if set_up(e))
        assert not any(r.performed or r.evaluations for r in recorders if not r.tag)

    def teardown(self) -> None:
        """Every desktop comes back, whether its client releases it or falls silent."""
        try:
            if len(self.c.episodes) % 2:
                self.pass_time(1000.0)
            for episode in [e for e in self.c.episodes if e.state != "closed"]:
                self._delete(episode)
            assert self.c.settled() == CAPACITY
            self.operators_see_what_the_model_says_and_a_desktop_has_one_holder()
            self.desktops_were_done_to_what_was_acknowledged_and_nothing_else()
        finally:
            self.c.close()


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[tuple[LoopThread, Path]]:
    """Where servers run, and the tokens that they take; their reapers are quick."""
    tokens = tmp_path / "token"
    tokens.touch(mode=0o600)
    tokens.write_text(TOKEN_FILE)
    monkeypatch.setattr("arpo.server.manager.REAPER_TICK_S", 0.005)
    thread = LoopThread()
    start_evaluators(thread, tokens)
    yield thread, tokens
    thread.close()


def start_evaluators(thread: LoopThread, tokens: Path) -> None:
    """Evaluate once, however long it takes: on a busy machine an evaluator process may need longer to start than a
    request waits, and then a first evaluation is answered with 202 that the model expects to be answered with its score.
    """
    callers = Callers(thread, tokens, capacity=1)
    try:
        body = callers.body("a", idle_s=1000.0)
        episode = callers.begun(callers.create(ALICE, body, None), ALICE, "a", None, body)
        callers.ready(episode)
        while (reply := callers.evaluate(episode)).status_code == 202:
            pass
        callers.scored(episode, episode.lease, reply)
    finally:
        callers.close()


@pytest.mark.slow
@pytest.mark.timeout(900)  # to find the shortest way to a failure takes Hypothesis up to five minutes
@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(4 * EXAMPLES, marks=pytest.mark.long)])
def test_whatever_clients_send_the_server_agrees_with_the_model(served, examples: int) -> None:
    thread, tokens = served
    run_state_machine_as_test(
        type("Machine", (SessionMachine,), {"thread": thread, "tokens": tokens}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=80,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_creation_that_is_sent_again_is_a_sign_of_life(served) -> None:
    callers = Callers(*served, CAPACITY)
    try:
        body = callers.body("a", idle_s=30.0)
        created = read(callers.create(ALICE, body, "key"), 201)
        for _ in range(3):
            callers.server.pass_time(20.0)
            again = read(callers.create(ALICE, body, "key"), 201)
            assert (again["session_id"], again["lease"]) == (created["session_id"], created["lease"])
            assert again["state"] != "closed"
        callers.server.pass_time(30.0)
        assert read(callers.create(ALICE, body, "key"), 201)["state"] == "closed"
    finally:
        callers.close()
