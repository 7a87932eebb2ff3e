from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from arpo.client.breaker import BreakerRules, CircuitBreaker, CircuitState, Ticket

CLOSED, OPEN, HALF_OPEN = CircuitState


class BreakerMachine(RuleBasedStateMachine):
    """Attempts that begin, fail, get answers and are given up in any order, and a clock that only rises."""

    begun = Bundle("begun")

    # Whole seconds, so that sums are exact.
    @initialize(failures=st.integers(1, 4), first_s=st.integers(1, 4), factor=st.integers(1, 20))
    def made(self, failures: int, first_s: int, factor: int) -> None:
        self.rules = BreakerRules(failures, first_s, first_s * factor)
        self.breaker = CircuitBreaker(self.rules)
        self.now = 0
        self.probes: set[Ticket] = set()
        self.fresh_failures = 0
        self.pause_s = 0

    @rule(seconds=st.integers(0, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def the_pause_ends(self) -> None:
        self.now += self.breaker.wait_s(self.now)

    @rule(target=begun)
    def an_attempt_is_wanted(self) -> Ticket | None:
        before, wait_s = self.breaker.state, self.breaker.wait_s(self.now)
        ticket = self.breaker.admit(self.now)
        if before is CLOSED:
            assert ticket is not None
            assert not ticket.probe
        elif before is OPEN and wait_s == 0:
            assert ticket is not None
            assert ticket.probe
            assert not self.probes, "two probes at a time"
            self.probes.add(ticket)
            assert self.breaker.state is HALF_OPEN
        else:
            assert ticket is None
        return ticket

    @rule(ticket=consumes(begun))
    def it_fails(self, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        before, current = self.breaker.state, self.breaker._epoch == ticket.epoch
        self.breaker.failed(ticket, self.now)
        self.probes.discard(ticket)
        if not current:
            assert self.breaker.state is before, "old news changed the circuit"
            return
        if before is CLOSED:
            self.fresh_failures += 1
            opened = self.fresh_failures == self.rules.failures
            assert self.breaker.state is (OPEN if opened else CLOSED)
            if opened:
                self.pause_s = self.rules.first_s
        else:
            assert self.breaker.state is OPEN
            self.pause_s = min(self.rules.longest_s, 2 * self.pause_s)
        if self.breaker.state is OPEN:
            self.fresh_failures = 0
            assert self.breaker.wait_s(self.now) == self.pause_s

    @rule(ticket=consumes(begun))
    def it_is_answered(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self.breaker.answered()
            self.fresh_failures = 0
            # A probe that another answer forestalled decides nothing any more.
            self.probes.clear()
            assert self.breaker.state is CLOSED

    @rule(ticket=consumes(begun))
    def it_is_given_up(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self.breaker.abandoned(ticket, self.now)
            if ticket in self.probes:
                self.probes.discard(ticket)
                assert self.breaker.wait_s(self.now) == 0

    @invariant()
    def a_circuit_that_is_not_closed_has_a_probe_on_its_way_or_soon(self) -> None:
        if hasattr(self, "breaker"):
            assert (self.breaker.state is HALF_OPEN) == bool(self.probes)
            assert 0 <= self.breaker.wait_s(self.now) <= self.rules.longest_s


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_server_that_stays_away_is_asked_ever_more_seldom() -> None:
    breaker = CircuitBreaker(BreakerRules(failures=2, first_s=1.0, longest_s=4.0))
    now, pauses = 0.0, []
    for _ in range(2):
        ticket = breaker.admit(now)
        assert ticket is not None
        breaker.failed(ticket, now)
    for _ in range(5):
        pauses.append(breaker.wait_s(now))
        now += pauses[-1]
        probe = breaker.admit(now)
        assert probe is not None
        assert breaker.admit(now) is None
        breaker.failed(probe, now)
    assert pauses == [1, 2, 4, 4, 4]


def test_failures_that_began_before_the_server_came_back_do_not_count() -> None:
    breaker = CircuitBreaker(BreakerRules(failures=2))
    old = [breaker.admit(0.0) for _ in range(10)]
    for ticket in old[:2]:
        breaker.failed(ticket, 1.0)
    breaker.answered()
    for ticket in old[2:]:
        breaker.failed(ticket, 2.0)
    assert breaker.state is CLOSED
