"""The env-server's account of an operation, as phases of whoever waited for it (`arpo.telemetry.phases`)."""

from __future__ import annotations

import time

from arpo.protocol.timing import read_timing
from arpo.telemetry.phases import add_phase


def count_phases(timing: str, began: float) -> None:
    """Count the phases that an answer's `Server-Timing` names. began: when the operation was asked for (`time.monotonic`).

    Nobody knows how the two clocks differ: question and answer are taken to have travelled for equally long. An account
    that does not fit into the wait is of an operation that had ended before, and is not counted.
    """
    spent = read_timing(timing)
    travelled_s = time.monotonic() - began - max((one.start_s + one.seconds for one in spent), default=0.0)
    if travelled_s < 0:
        return
    for one in spent:
        add_phase(one.phase, one.seconds, began + travelled_s / 2 + one.start_s)
