"""The experience buffer of successful trajectories."""

from arpo.replay.buffer import ReplayBuffer
from arpo.replay.errors import ReplayError
from arpo.replay.folder import ReplayFolder
from arpo.replay.rows import RowStore

__all__ = ["ReplayBuffer", "ReplayError", "ReplayFolder", "RowStore"]
