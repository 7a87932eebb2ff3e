"""Sessions and desktops as operators see them."""

from __future__ import annotations

from collections.abc import Iterable

from arpo.protocol.messages import DesktopStatus, PoolStatus, SessionList, SessionSummary
from arpo.server.pool import DesktopPool
from arpo.server.registry import Entry


def session_list(entries: Iterable[Entry], now: float) -> SessionList:
    """now: seconds on the clock of the sessions."""
    return SessionList(sessions=[_summary(entry, now) for entry in entries])


def pool_status(pool: DesktopPool, entries: Iterable[Entry]) -> PoolStatus:
    """Every desktop, and which session holds it."""
    holders = {entry.slot.index: entry.session.id for entry in entries if entry.slot}
    return PoolStatus(
        desktops=[
            DesktopStatus(
                index=desktop.index,
                state=desktop.state.value,
                strikes=desktop.strikes,
                reason=desktop.reason,
                session_id=holders.get(desktop.index),
            )
            for desktop in pool.view()
        ]
    )


def _summary(entry: Entry, now: float) -> SessionSummary:
    session = entry.session
    return SessionSummary(
        session_id=session.id,
        state=session.state,
        seq=session.seq,
        caller=entry.owner,
        client_id=session.options.client_id,
        task_id=entry.task_id,
        desktop=entry.slot.index if entry.slot else None,
        age_s=now - entry.created,
        idle_s=session.idle_s(now),
        idle_timeout_s=session.options.idle_timeout_s,
        score=session.score,
        problem=session.problem,
    )
