"""How this process's C allocator keeps large blocks.

glibc maps a large block by itself and gives it back when it is freed, but each one that is freed raises the size from
which it does so, up to 32 MiB. From then on tensors of a few MiB are cut from the heaps of whichever threads make them,
and what lies between small blocks that live on is never given back: resident memory exceeds what is in use, and rises for
thousands of turns.
"""

from __future__ import annotations

import ctypes
import os

LARGE_BYTES = 128 << 10
"""What glibc begins with."""
_M_MMAP_THRESHOLD = -3  # <malloc.h>


def map_large_blocks() -> None:
    """Have blocks of at least LARGE_BYTES mapped by themselves for as long as the process lives.

    Nothing happens where the C library cannot be told so (macOS, musl), or where the environment has chosen already.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
