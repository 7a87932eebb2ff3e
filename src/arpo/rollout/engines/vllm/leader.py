"""vLLM's processes end with the process that leads them, even if that is killed.

vLLM's own core process does not notice that its front end is gone: it would keep its memory, and a GPU, for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from contextlib import suppress

LEADER = "ARPO_VLLM_LEADER"
"""Environment variable: the id of the process that drives the engine."""


def end_with_leader() -> None:
    """Called in a worker: end it, and the process that started it, as soon as the leader is gone."""
    leader = int(os.environ.get(LEADER, "0"))
    if leader and leader != os.getpid():
        threading.Thread(target=_wait, args=(leader,), name="end-with-leader", daemon=True).start()


def _wait(leader: int) -> None:
    with suppress(ProcessLookupError):  # it is gone already
        ended = select.poll()
        ended.register(os.pidfd_open(leader), select.POLLIN)
        ended.poll()
    core = multiprocessing.parent_process()
    # without workers of their own, vLLM's core is this process and the leader was its parent
    if core is not None and core.pid not in (None, leader):
        with suppress(ProcessLookupError):
            os.kill(core.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
