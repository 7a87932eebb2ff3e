"""The record of one episode.

Invariant: `token_ids` is exactly what the engine was shown and what it sampled, never re-tokenised text. A position
with `loss_mask` true was sampled by the engine, and `logprobs` there is its behaviour log-prob; the last turn included.
A record without a row has none of them: it is an evaluation's, for people, and nothing can be trained on it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from arpo.protocol.actions import Action
from arpo.protocol.problems import Problem
from arpo.trajectory.operation import Operation


class ImageRef(BaseModel):
    """A screenshot by content; its bytes are in the screenshot store.

    width, height: of the stored picture. tokens: how many image tokens stand for it in the row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    width: int
    height: int
    tokens: int


class Turn(BaseModel):
    """One assistant turn: row positions [start, end) were sampled; `text` is their decoding, for people.

    policy_version: that sampled its first token. pushes: (row position, version) from which a newer one sampled, as
    weights were pushed amid the turn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int
    end: int
    text: str
    actions: list[Action]
    format_error: str | None = None
    policy_version: int
    pushes: list[tuple[int, int]] = []
    observation: str
    """sha256 of the screenshot that this turn answered."""
    started_at: float | None = None
    """Unix time at which the screenshot was shown to the policy; None in records of older versions."""


class Trajectory(BaseModel):
    """One attempt at a task: a row of L tokens plus what happened.

    token_ids, loss_mask, logprobs: all of length L. images: in the order of their place in the row.
    score: the evaluator's, None unless the episode was evaluated. format: 0.0 or -1.0 (an action did not parse).
    problem: why the episode is invalid; an invalid trajectory is counted and never trained on.
    sampler: `script` for a demonstration, which nobody sampled: its log-probs say nothing of how likely it was.
    operations: what it waited for, as they ended; none in records of older versions. trace_id, span_id: of its root span,
    None unless it was traced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    episode_id: str
    task_id: str
    domain: str
    instruction: str
    group_id: str
    token_ids: list[int]
    loss_mask: list[bool]
    logprobs: list[float]
    images: list[ImageRef]
    turns: list[Turn]
    score: float | None
    format: float
    final_observation: str | None = None
    problem: Problem | None = None
    started_at: float
    duration_s: float
    timings: dict[str, float] = {}
    """Seconds by phase: reset, generate, step, evaluate."""
    sampler: Literal["policy", "script"] = "policy"
    operations: tuple[Operation, ...] = ()
    trace_id: str | None = None
    span_id: str | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError("token_ids, loss_mask and logprobs differ in length")
        return self

    @property
    def valid(self) -> bool:
        """May it be trained on: evaluated, and no environment or client fault on the way."""
        return self.problem is None and self.score is not None

    @property
    def trainable(self) -> bool:
        """Valid, and with the tokens that a policy sampled."""
        return self.valid and any(self.loss_mask)

    def without_row(self) -> Trajectory:
        """The same episode for people alone: what was said and done, and no tokens."""
        turns = [turn.model_copy(update={"start": 0, "end": 0, "pushes": []}) for turn in self.turns]
        nothing: dict[str, object] = {"token_ids": [], "loss_mask": [], "logprobs": [], "images": []}
        return self.model_copy(update={**nothing, "turns": turns})

    @property
    def policy_version(self) -> int:
        """The oldest policy version that sampled any of its tokens."""
        return min((t.policy_version for t in self.turns), default=0)

    @property
    def token_versions(self) -> list[int | None]:
        """Of every token of the row the policy version that sampled it [L]; None where none did."""
        versions: list[int | None] = [None] * len(self.token_ids)
        for turn in self.turns:
            begins = [(turn.start, turn.policy_version), *turn.pushes]
            for (start, version), end in zip(begins, [*(at for at, _ in turn.pushes), turn.end], strict=True):
                versions[start:end] = [version] * (end - start)
        return versions

    def succeeded(self, above: float) -> bool:
        """Valid, with a score above `above` (`replay.success_above`): what counts as a success everywhere."""
        return self.problem is None and self.score is not None and self.score > above

    def reward(self, format_coef: float) -> float:
        """score + format_coef · format (ARPO's code; 0.5 by default). Raises ValueError when invalid."""
        if self.score is None or self.problem is not None:
            raise ValueError(f"episode {self.episode_id} has no reward: {self.problem}")
        return self.score + format_coef * self.format


class GroupMember(BaseModel):
    """A place in a group: a fresh trajectory, or one that the replay buffer put there instead of a failure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trajectory: Trajectory
    replayed: bool = False
