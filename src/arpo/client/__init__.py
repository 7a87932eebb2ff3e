"""The asynchronous client of the session API.

    async with EnvClient(url, token) as env:
        async with await env.open_session(task.wire()) as session:
            reply = await session.step([Click(x=10, y=20), Finished()])
            score = await session.evaluate()

Every failure is a `ProblemError` (arpo.protocol.problems); its `fault` says who is to blame. Whatever is sent may
be sent again, because the server tells repeats apart: creations by their key, steps by their seq. Calls about a
session ride out an outage (`ClientTimeouts.outage_s`); a server that does not answer is left alone but for one probe
at a time (`BreakerRules`).
"""

from arpo.client.breaker import BreakerRules
from arpo.client.client import EnvClient
from arpo.client.limits import Backoff, ClientTimeouts
from arpo.client.session import Session

__all__ = ["Backoff", "BreakerRules", "ClientTimeouts", "EnvClient", "Session"]
