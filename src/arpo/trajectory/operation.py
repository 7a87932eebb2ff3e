"""What an episode waited for, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from arpo.protocol.problems import ProblemCode

OperationName = Literal["reset", "generate", "step", "evaluate"]


class Operation(BaseModel):
    """One operation of an episode. start_s: since the episode's `started_at`. turn: that it belongs to, from 0.

    problem: why it failed; `cancelled` when the episode was over before it. phases: (name, start_s, seconds): the lease
    wait, an engine's queue, and what the env-server says of its own work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: OperationName
    start_s: float
    seconds: float
    turn: int | None = None
    problem: ProblemCode | Literal["cancelled"] | None = None
    phases: tuple[tuple[str, float, float], ...] = ()
