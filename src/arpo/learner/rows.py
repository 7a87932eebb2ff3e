"""Groups → rows that the learner trains on.

Invariant: the tokens that enter the loss are exactly those the engine sampled. A trajectory that is longer than
a packed row is cut at whole turns or whole screenshots, never inside one, and every cut is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch

from arpo.config.sections import LearnerSection
from arpo.learner.advantages import advantages
from arpo.policy.encoder import ChatEncoder
from arpo.policy.logprobs import TokenRow
from arpo.trajectory import GroupMember, Trajectory

CutRule = Literal["last_turns", "oldest_screenshots", "skip"]
"""What a trajectory that is too long loses: see `cut`."""


@dataclass(frozen=True)
class Row:
    """A trajectory, as much of it as fits, with its advantage A.

    token_ids [L]; images: sha256 of its screenshots in order; sampled [N]: indices of the tokens that the
    engine sampled and that are trained on; behaviour [N]: their log-probs at that time. stale: an older policy than the
    one that learns sampled some of them. turns_cut, screenshots_cut: what was taken away.
    """

    token_ids: torch.Tensor
    images: tuple[str, ...]
    sampled: torch.Tensor
    behaviour: torch.Tensor
    advantage: float = 0.0
    replayed: bool = False
    stale: bool = False
    turns_cut: int = 0
    screenshots_cut: int = 0

    @property
    def same_context(self) -> bool:
        """The model is shown what the engine was shown, so that their log-probs can be compared."""
        return self.screenshots_cut == 0

    def token_row(self) -> TokenRow:
        """What the model reads."""
        return TokenRow(self.token_ids, self.images, self.sampled)


@dataclass(frozen=True)
class RowBatch:
    """rows: those to train on. left_out: trajectories of which nothing fits, or that have no sampled token."""

    rows: list[Row]
    left_out: int

    def metrics(self) -> dict[str, float]:
        """Counts of rows and of cuts, named `learner/…`."""
        return {
            "learner/rows": float(len(self.rows)),
            "learner/rows_replayed": float(sum(row.replayed for row in self.rows)),
            "learner/rows_without_signal": float(sum(row.advantage == 0 for row in self.rows)),
            "learner/rows_left_out": float(self.left_out),
            "learner/rows_cut": float(sum(row.turns_cut + row.screenshots_cut > 0 for row in self.rows)),
            "learner/turns_cut": float(sum(row.turns_cut for row in self.rows)),
            "learner/screenshots_cut": float(sum(row.screenshots_cut for row in self.rows)),
        }


def rows_of(
    groups: Sequence[Sequence[GroupMember]],
    section: LearnerSection,
    encoder: ChatEncoder,
    version: int | None = None,
) -> RowBatch:
    """A row for every member of every group; reward = score + format_coef · format.

    Groups may differ in size. A trajectory of which nothing is left still counts in its group's baseline. version: of the
    policy that learns; None: no row counts as stale.
    Raises ValueError when a trajectory is invalid.
    """
    rewards = [[member.trajectory.reward(section.format_coef) for member in group] for group in groups]
    rows: list[Row] = []
    left_out = 0
    for group, values in zip(groups, advantages(rewards, section.advantage), strict=True):
        for member, advantage in zip(group, values, strict=True):
            row = cut(
                member.trajectory,
                encoder,
                limit=section.max_row_tokens,
                rule=section.cut,
                advantage=advantage,
                replayed=member.replayed,
            )
            if row is None or not len(row.sampled):
                left_out += 1
            else:
                stale = version is not None and member.trajectory.policy_version != version
                rows.append(replace(row, stale=stale))
    return RowBatch(rows, left_out)


def whole_row(trajectory: Trajectory, *, advantage: float = 0.0, replayed: bool = False) -> Row:
    """The row of a whole trajectory."""
    mask = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
    sampled = mask.nonzero()[:, 0]
    return Row(
        token_ids=torch.tensor(trajectory.token_ids, dtype=torch.int32),
        images=tuple(image.sha256 for image in trajectory.images),
        sampled=sampled.int(),
        behaviour=torch.tensor(trajectory.logprobs, dtype=torch.float64)[sampled],
        advantage=advantage,
        replayed=replayed,
    )


def cut(
    trajectory: Trajectory,
    encoder: ChatEncoder,
    *,
    limit: int,
    rule: CutRule,
    advantage: float = 0.0,
    replayed: bool = False,
) -> Row | None:
    """As much of a trajectory as fits into `limit` tokens, or None when nothing does.

    `last_turns`: turns are taken from the end; what is left was sampled in exactly this context.
    `oldest_screenshots`: screenshots are taken from the front, as an agent's history window does. A turn that
    answered one of them stays as context and is no longer trained on; later ones are trained on in the shorter
    context. `skip`: all or nothing.
    """
    row = whole_row(trajectory, advantage=advantage, replayed=replayed)
    if len(row.token_ids) <= limit:
        return row
    match rule:
        case "last_turns":
            return _without_last_turns(row, trajectory, limit)
        case "oldest_screenshots":
            return _without_oldest_screenshots(row, trajectory, encoder, limit)
        case "skip":
            return None


def _without_last_turns(row: Row, trajectory: Trajectory, limit: int) -> Row | None:
    kept = [turn for turn in trajectory.turns if turn.end <= limit]
    if not kept:
        return None
    end = kept[-1].end
    inside = row.sampled < end
    return Row(
        token_ids=row.token_ids[:end],
        images=row.images[: len(kept)],
        sampled=row.sampled[inside],
        behaviour=row.behaviour[inside],
        advantage=row.advantage,
        replayed=row.replayed,
        turns_cut=len(trajectory.turns) - len(kept),
    )


def _without_oldest_screenshots(
    row: Row, trajectory: Trajectory, encoder: ChatEncoder, limit: int
) -> Row | None:
    messages = [encoder.image_message(image.width, image.height)[0] for image in trajectory.images]
    too_many = len(row.token_ids) - limit
    # the newest screenshot stays: a policy that sees nothing has nothing to learn from
    sizes = accumulate(len(message) for message in messages[:-1])
    dropped = next((number for number, size in enumerate(sizes, start=1) if size >= too_many), None)
    if dropped is None:
        return None
    keep = torch.ones(len(row.token_ids), dtype=torch.bool)
    pads = (row.token_ids == encoder.image_token_id).nonzero()[:, 0].tolist()
    first_pads = [0, *accumulate(image.tokens for image in trajectory.images)]
    for message, first in zip(messages[:dropped], first_pads, strict=False):
        start = pads[first] - message.index(encoder.image_token_id)
        keep[start : start + len(message)] = False
    trained = row.sampled >= trajectory.turns[dropped].start
    moved = keep.cumsum(0) - 1
    return Row(
        token_ids=row.token_ids[keep],
        images=row.images[dropped:],
        sampled=moved[row.sampled[trained].long()].int(),
        behaviour=row.behaviour[trained],
        advantage=row.advantage,
        replayed=row.replayed,
        screenshots_cut=dropped,
    )
