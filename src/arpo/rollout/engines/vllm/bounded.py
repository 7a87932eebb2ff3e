"""Work that may wait for another process for ever, and is not waited for that long.

Invariant: `bounded` returns or raises within its time. What it no longer waits for is left to a daemon thread, which ends
when the group that it waits in does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

_T = TypeVar("_T")
_BLAME_S = 3.0
"""For so long after the work has failed, the reason why it did may still come."""


def bounded(work: Callable[[], _T], failure: Future[Any], timeout_s: float) -> _T:
    """Run work until it ends, until `failure` has an exception, or for so long.

    failure: raised first where both have failed: it says why, where the work only says that a connection was closed.
    Raises TimeoutError besides.
    """
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # whoever waits decides
            outcome.set_exception(error)

    threading.Thread(target=run, name="bounded-work", daemon=True).start()
    both: set[Future[Any]] = {outcome, failure}
    done, _ = wait(both, timeout_s, FIRST_COMPLETED)
    if not done:
        raise TimeoutError(f"no end after {timeout_s:g} s")
    if outcome in done and outcome.exception() is not None:
        wait({failure}, _BLAME_S)
    if failure.done():
        failure.result()
    return outcome.result()
