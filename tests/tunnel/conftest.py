"""The env-servers and runs at the tunnel's ends are started as the other tests start them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "e2e"),
    str(Path(__file__).parents[1] / "server"),
]
