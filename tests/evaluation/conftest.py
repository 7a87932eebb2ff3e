"""Evaluations run with the rollouts' policy that says letters, against the env-server that the server's tests script."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("rollout", "server"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
