"""Runs through a bad network go through the client tests' proxy."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "client"))
