"""The sessions that a server knows: open ones, and closed ones that are still told apart from unknown ones.

Invariants
- A session is found by its owner and by admins; to everybody else it does not exist.
- One idempotency key of one caller means one session, for as long as that session is remembered.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from arpo.protocol.problems import Problem, ProblemCode, ProblemError
from arpo.server.callers import Caller
from arpo.server.measured import Measurement
from arpo.server.pool import Slot
from arpo.server.screenshots import Encoder
from arpo.server.sessions import OVER, Session

Operation = asyncio.Task[Problem | None]
"""A desktop call at work; its result is what went wrong, if anything did. Not an exception: those keep alive whatever
their tracebacks can reach.
"""

REMEMBERED = 10_000
"""Closed sessions that are remembered."""

_SESSION_ID = re.compile(r"[0-9a-f]{8}\.[0-9a-f]{16}")


@dataclass(frozen=True)
class CreationKey:
    """What makes two creations the same one. digest: of what was asked for."""

    key: str
    digest: bytes


@dataclass(eq=False)
class Entry:
    """A session with its owner and with what it holds. measurement: of its last operation."""

    session: Session
    owner: str
    task_id: str
    created: float
    encoder: Encoder
    slot: Slot | None
    creation: CreationKey | None = None
    operation: Operation | None = None
    measurement: Measurement | None = None

    def forget_operation(self) -> None:
        """The session is closed and its last operation has ended."""
        self.operation = None
        self.measurement = None


class SessionRegistry:
    """The sessions of one life of a server."""

    def __init__(self) -> None:
        # Part of every session id: a session of an earlier life of this server is recognised as lost, not as a
        # client's mistake.
        self._life = secrets.token_hex(4)
        self._open: dict[str, Entry] = {}
        self._closed: OrderedDict[str, Entry] = OrderedDict()
        self._created: dict[tuple[str, str], Entry] = {}

    def new_id(self) -> str:
        """An id that nobody can guess."""
        return f"{self._life}.{secrets.token_hex(8)}"

    def add(self, entry: Entry) -> None:
        """A new session."""
        self._open[entry.session.id] = entry
        if entry.creation is not None:
            self._created[entry.owner, entry.creation.key] = entry

    def close(self, entry: Entry) -> None:
        """Move a session to the closed ones; the one that was closed the longest ago may be forgotten for it."""
        del self._open[entry.session.id]
        operation = entry.operation
        if operation is not None:
            # Remembered sessions are many: what they once did is not kept.
            operation.add_done_callback(lambda _: entry.forget_operation())
        self._closed[entry.session.id] = entry
        while len(self._closed) > REMEMBERED:
            _, forgotten = self._closed.popitem(last=False)
            if forgotten.creation is not None:
                del self._created[forgotten.owner, forgotten.creation.key]

    def find(self, session_id: str, caller: Caller) -> Entry:
        """The session. Raises ProblemError not_found, or backend_lost for one of an earlier life."""
        entry = self._open.get(session_id) or self._closed.get(session_id)
        if entry is not None and (entry.owner == caller.name or caller.is_admin):
            return entry
        made_elsewhere = _SESSION_ID.fullmatch(session_id) and not session_id.startswith(self._life)
        if made_elsewhere:
            raise ProblemError(
                ProblemCode.BACKEND_LOST,
                f"session {session_id} was lost when its env-server stopped or restarted",
            )
        raise ProblemError(ProblemCode.NOT_FOUND, f"there is no session {session_id!r}")

    def created_with(self, creation: CreationKey, caller: Caller) -> Entry | None:
        """The session that an earlier request with this key made.

        Raises ProblemError invalid_request when that request asked for something else.
        """
        entry = self._created.get((caller.name, creation.key))
        if entry is not None and entry.creation != creation:
            raise ProblemError(
                ProblemCode.INVALID_REQUEST,
                "Idempotency-Key was sent before with another body; fix: a new key for a new session",
            )
        return entry

    def open(self) -> list[Entry]:
        """Sessions that are not closed; failed ones are among them."""
        return list(self._open.values())

    def alive(self) -> Iterator[Entry]:
        """Sessions that have not ended."""
        return (entry for entry in self._open.values() if entry.session.state not in OVER)

    def all(self) -> list[Entry]:
        """Open and remembered sessions."""
        return [*self._open.values(), *self._closed.values()]
