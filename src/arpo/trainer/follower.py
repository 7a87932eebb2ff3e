"""The program of a learner rank that the leader of a run starts: `python -m arpo.trainer.follower cpu|cuda`."""

from __future__ import annotations

import sys

from arpo.imports import quick_imports
from arpo.protocol.problems import ArpoError

with quick_imports():
    from arpo.trainer.ranks import follow_leader


def main() -> int:
    """Follow the leader that the environment names (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_PORT)."""
    try:
        follow_leader("cuda" if sys.argv[1:] == ["cuda"] else "cpu")
    except ArpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
