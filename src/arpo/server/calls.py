"""One call of a desktop: bounded in time, and every failure typed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from arpo.desktop.base import Desktop
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.server.sessions import OVER, Session

log = logging.getLogger(__name__)

T = TypeVar("T")


async def call(
    session: Session,
    work: Awaitable[T],
    limit_s: float,
    failed: ProblemCode,
    *,
    late: ProblemCode | None = None,
) -> T:
    """What a desktop's call on behalf of a session returns.

    failed, late: the codes for what the desktop did not foresee and for taking longer than `limit_s` seconds (the
    same when not given). Raises ProblemError; CancelledError once the session has ended meanwhile.
    """
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await work
    except ProblemError:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody asked for it: something inside the desktop was cancelled.
        raise ProblemError(failed, "the desktop gave up its own call") from None
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise ProblemError(late or failed, f"not done after {limit_s:g} s") from error
        # A desktop may be anyone's code: what it did not foresee is a fault of the environment, never a score.
        log.exception("unexpected error in a desktop")
        raise ProblemError(failed, f"{type(error).__name__}: {error}") from error
    finally:
        if session.state in OVER:
            # It was cancelled, whatever the desktop made of that: the session has nothing more to be told.
            raise asyncio.CancelledError


async def score(desktop: Desktop) -> float:
    """The desktop's score; what is no number fails inside the evaluation, since evaluators return what they like."""
    return float(await desktop.evaluate())
