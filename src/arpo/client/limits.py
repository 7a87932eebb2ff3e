"""How long the client waits for what, and how it waits."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class ClientTimeouts:
    """Seconds.

    Of one request: connect_s, write_s, pool_s as in httpx; poll_s is how long the server may hold a request about a
    running operation open (at most 25), and read_s the silence allowed beyond that.

    Of one operation, whatever the number of requests: capacity_s, until `open_session` has a desktop; reset_s, step_s
    (and the seconds of its wait actions) and evaluate_s; close_s, what a caller waits for a release, which then goes
    on in the background. The clocks of reset_s, step_s and evaluate_s stand still while the server does not answer; for
    that there is outage_s: how long calls about a session go on without any answer, counted from the end of the first
    attempt that got none; infinite: until there is one.
    """

    connect_s: float = 5.0
    read_s: float = 10.0
    write_s: float = 10.0
    pool_s: float = 60.0
    poll_s: float = 10.0
    outage_s: float = 30.0
    capacity_s: float = 600.0
    reset_s: float = 1200.0
    step_s: float = 300.0
    evaluate_s: float = 900.0
    close_s: float = 5.0


@dataclass(frozen=True)
class Backoff:
    """Growing pauses with jitter: attempt n (from 0) is followed by one of `first_s`·2ⁿ, at most `longest_s`,
    of which a random half is left out so that many clients do not come back together.

    attempts: how often a call that belongs to no session yet is tried; calls about a session have
    `ClientTimeouts.outage_s`.
    """

    attempts: int = 4
    first_s: float = 0.2
    longest_s: float = 5.0

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after attempt n."""
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 16))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
