from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.protocol.actions import Click
from arpo.protocol.messages import Observation, Screenshot, SessionOptions, SessionState, StepRequest
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.server.sessions import Decision, IllegalTransitionError, Session

LEASE = 7


def observation(number: int) -> Observation:
    data = str(number).encode()
    return Observation(
        screenshot=Screenshot(width=1, height=1, sha256=hashlib.sha256(data).hexdigest(), data=data)
    )


def resetting(idle_timeout_s: float = 10.0) -> Session:
    return Session("s", LEASE, SessionOptions(idle_timeout_s=idle_timeout_s), now=100.0)


def ready() -> Session:
    session = resetting()
    session.reset_ended(observation(0))
    return session


def step(seq: int, lease: int = LEASE, x: int = 1) -> StepRequest:
    return StepRequest(lease=lease, seq=seq, actions=[Click(x=x, y=1)])


def refusal(call, *arguments) -> ProblemCode:
    with pytest.raises(ProblemError) as caught:
        call(*arguments)
    return caught.value.code


def failure(code: ProblemCode = ProblemCode.DESKTOP_LOST):
    return ProblemError(code, "gone").problem


def test_a_step_is_started_joined_while_it_runs_and_repeated_once_it_was_applied() -> None:
    session = ready()
    assert session.begin_step(step(1)) is Decision.START
    assert session.begin_step(step(1)) is Decision.JOIN
    session.step_applied(observation(1), terminal=False)
    assert session.begin_step(step(1)) is Decision.REPEAT
    assert session.reply(1).observation == observation(1)
    assert session.state is SessionState.READY


@pytest.mark.parametrize("seq", [2, 3, 99])
def test_a_gap_in_seq_is_a_conflict_and_changes_nothing(seq: int) -> None:
    session = ready()
    assert refusal(session.begin_step, step(seq)) is ProblemCode.SEQ_CONFLICT
    assert session.state is SessionState.READY
    assert session.begin_step(step(1)) is Decision.START


def test_only_the_last_reply_can_be_repeated() -> None:
    session = ready()
    for seq in (1, 2):
        session.begin_step(step(seq))
        session.step_applied(observation(seq), terminal=False)
    assert refusal(session.begin_step, step(1)) is ProblemCode.SEQ_CONFLICT


def test_another_lease_is_refused_everywhere() -> None:
    session = ready()
    for call in (lambda: session.begin_step(step(1, LEASE + 1)), lambda: session.begin_evaluate(LEASE - 1)):
        assert refusal(call) is ProblemCode.LEASE_LOST


def test_a_refused_step_leaves_its_seq_free() -> None:
    session = ready()
    session.begin_step(step(1))
    session.refused()
    assert session.begin_step(step(1)) is Decision.START


def test_the_same_seq_with_other_actions_is_a_conflict_while_it_runs_and_afterwards() -> None:
    session = ready()
    session.begin_step(step(1))
    assert refusal(session.begin_step, step(1, x=2)) is ProblemCode.SEQ_CONFLICT
    session.step_applied(observation(1), terminal=False)
    assert refusal(session.begin_step, step(1, x=2)) is ProblemCode.SEQ_CONFLICT
    session.begin_step(step(2, x=3))
    session.refused()
    assert session.begin_step(step(1)) is Decision.REPEAT


def test_a_screen_that_did_not_change_is_not_sent_again_but_stays_in_the_view() -> None:
    session = ready()
    session.begin_step(step(1))
    session.step_applied(observation(0), terminal=False)
    told = session.reply(1).observation
    assert (told.unchanged, told.screenshot.data) == (True, b"")
    assert told.screenshot.sha256 == observation(0).screenshot.sha256
    assert session.view().observation == observation(0)
    session.begin_step(step(2))
    session.step_applied(observation(2), terminal=False)
    assert session.reply(2).observation == observation(2)


def test_done_stays_once_a_terminal_action_was_applied() -> None:
    session = ready()
    for seq, terminal in ((1, True), (2, False)):
        session.begin_step(step(seq))
        session.step_applied(observation(seq), terminal=terminal)
        assert session.reply(seq).done is True


def test_an_evaluation_runs_once_and_its_score_is_repeated() -> None:
    session = ready()
    assert session.begin_evaluate(LEASE) is Decision.START
    assert session.begin_evaluate(LEASE) is Decision.JOIN
    session.evaluated(0.5)
    assert session.begin_evaluate(LEASE) is Decision.REPEAT
    assert session.view().score == 0.5
    assert refusal(session.begin_step, step(1)) is ProblemCode.INVALID_REQUEST


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1])
def test_what_is_no_score_is_a_failed_evaluator(score: float) -> None:
    session = ready()
    session.begin_evaluate(LEASE)
    assert refusal(session.evaluated, score) is ProblemCode.EVALUATOR_FAILED
    assert session.score is None


def test_a_failed_evaluation_gives_the_same_problem_for_ever_and_never_a_score() -> None:
    session = ready()
    session.begin_evaluate(LEASE)
    session.fail(failure(ProblemCode.EVALUATOR_FAILED))
    for _ in range(2):
        assert refusal(session.begin_evaluate, LEASE) is ProblemCode.EVALUATOR_FAILED
    assert session.view().score is None


def test_a_closed_session_has_lost_its_lease_and_keeps_no_picture() -> None:
    session = ready()
    session.begin_step(step(1))
    session.close("released")
    session.close("again")
    for call in (lambda: session.begin_step(step(1)), lambda: session.begin_evaluate(LEASE)):
        assert refusal(call) is ProblemCode.LEASE_LOST
    view = session.view()
    assert (view.state, view.observation) == (SessionState.CLOSED, None)
    assert "released" in view.problem.detail


def test_nothing_can_be_asked_before_the_reset_has_ended() -> None:
    session = resetting()
    assert refusal(session.begin_step, step(1)) is ProblemCode.NOT_READY
    assert refusal(session.begin_evaluate, LEASE) is ProblemCode.NOT_READY


def test_what_the_shell_must_never_do_is_a_bug_and_not_an_answer() -> None:
    session = ready()
    with pytest.raises(IllegalTransitionError):
        session.step_applied(observation(1), terminal=False)
    with pytest.raises(IllegalTransitionError):
        session.reset_ended(observation(1))
    session.close("released")
    with pytest.raises(IllegalTransitionError):
        session.fail(failure())


def test_silence_counts_from_the_last_request_and_never_while_one_is_open() -> None:
    session = resetting(idle_timeout_s=10.0)
    assert not session.idle_at(109.9)
    assert session.idle_at(110.0)
    session.request_begins(105.0)
    session.request_begins(106.0)
    session.request_ends(107.0)
    assert not session.idle_at(10_000.0)
    session.request_ends(200.0)
    assert not session.idle_at(209.9)
    assert session.idle_at(210.0)


@given(
    st.lists(st.tuples(st.sampled_from(["step", "end", "refuse", "evaluate", "close"]), st.integers(1, 5)))
)
def test_whatever_a_client_asks_each_seq_is_applied_at_most_once_and_in_order(calls) -> None:
    session = ready()
    applied: list[int] = []
    for name, number in calls:
        try:
            if name == "step":
                if session.begin_step(step(number)) is Decision.START:
                    running = number
            elif name == "evaluate":
                session.begin_evaluate(LEASE)
            elif name == "close":
                session.close("released")
            elif session.state is SessionState.STEPPING:
                if name == "end":
                    session.step_applied(observation(running), terminal=False)
                    applied.append(running)
                else:
                    session.refused()
            elif session.state is SessionState.EVALUATING:
                session.evaluated(1.0)
        except ProblemError:
            continue
    assert applied == list(itertools.islice(itertools.count(1), len(applied)))
    assert session.seq == len(applied)
