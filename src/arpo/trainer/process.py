"""What this process holds in memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_GIB = 2**30


def rss_gib() -> float:
    """Resident memory now; where the system does not say (no /proc), the most there ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_rss_gib()
    return pages * os.sysconf("SC_PAGE_SIZE") / _GIB


def peak_rss_gib() -> float:
    """The most resident memory this process has had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if sys.platform == "darwin" else 1024) / _GIB
    # not ru_maxrss: it begins with what the process had that started this one
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib * 1024 / _GIB
