"""Rows of token ids and pictures → the tensors of one forward pass.

Invariant: a row in a padded batch or a packed one gets the same positions (Qwen's three-dimensional rotary
positions) as the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from arpo.policy.images import EncodedImage
from arpo.policy.vision import ImageFeatures

if TYPE_CHECKING:
    from arpo.policy.load import Policy


@dataclass(frozen=True)
class ModelRow:
    """token_ids hold one image-pad id for each image token of `images`, in order."""

    token_ids: Sequence[int]
    images: Sequence[EncodedImage]

    def check(self, image_token_id: int) -> None:
        """Raises ValueError when the row is empty or its image tokens are not those of its pictures."""
        ids = torch.as_tensor(self.token_ids)
        _check_row(ids, [image.tokens for image in self.images], image_token_id)


@dataclass(frozen=True)
class ModelInputs:
    """B rows padded to L tokens, with the P patches of all their pictures.

    input_ids, attention_mask [B, L]; position_ids [3, B, L] (time, height, width);
    next_position [B]: the position of the token that would follow each row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    next_position: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None

    def vision(self) -> dict[str, torch.Tensor]:
        """The model's keyword arguments for the pictures; empty when there are none."""
        if self.pixel_values is None or self.image_grid_thw is None:
            return {}
        return {"pixel_values": self.pixel_values, "image_grid_thw": self.image_grid_thw}


@dataclass(frozen=True)
class PackedInputs:
    """Several rows, one behind the other: L tokens without padding.

    input_ids [1, L]; position_ids [3, 1, L]: each row's begin at 0; lengths: tokens of each row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: list[int]
    images: Sequence[ImageFeatures]

    def vision(self) -> dict[str, Any]:
        """What the vision tower would give the model for these pictures."""
        if not self.images:
            return {}
        outputs = BaseModelOutputWithPooling(pooler_output=tuple(i.embedding for i in self.images))
        levels = zip(*(image.deepstack for image in self.images), strict=True)
        outputs.deepstack_features = [tuple(level) for level in levels]
        return {"image": outputs}


def pack(
    policy: Policy, rows: Sequence[tuple[Sequence[int] | torch.Tensor, Sequence[ImageFeatures]]]
) -> PackedInputs:
    """Put rows (token ids, features of their pictures) one behind the other, on the policy's device.

    Raises ValueError when a row is empty or its image tokens are not those of its pictures.
    """
    image_id = policy.encoder.image_token_id
    ids, positions = [], []
    for token_ids, pictures in rows:
        row = torch.as_tensor(token_ids, dtype=torch.long)
        _check_row(row, [len(picture.embedding) for picture in pictures], image_id)
        ids.append(row)
        positions.append(_rotary_positions(policy.model, row, [p.grid for p in pictures], image_id))
    return PackedInputs(
        input_ids=torch.cat(ids)[None].to(policy.device),
        position_ids=torch.cat(positions, dim=1)[:, None].to(policy.device),
        lengths=[len(row) for row in ids],
        images=[picture for _, pictures in rows for picture in pictures],
    )


def collate(policy: Policy, rows: Sequence[ModelRow]) -> ModelInputs:
    """Pad rows on the left into tensors on the policy's device, for sampling.

    Raises ValueError when a row is empty or its image tokens are not those of its pictures.
    """
    length = max(len(row.token_ids) for row in rows)
    input_ids = torch.full((len(rows), length), policy.pad_token_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    position_ids = torch.zeros((3, len(rows), length), dtype=torch.long)
    next_position = torch.zeros(len(rows), dtype=torch.long)
    image_id = policy.encoder.image_token_id
    for index, row in enumerate(rows):
        row.check(image_id)
        ids = torch.tensor(row.token_ids, dtype=torch.long)
        place = slice(length - len(ids), length)
        positions = _rotary_positions(policy.model, ids, [image.grid for image in row.images], image_id)
        input_ids[index, place] = ids
        attention_mask[index, place] = 1
        position_ids[:, index, place] = positions
        next_position[index] = positions.max() + 1
    images = [image for row in rows for image in row.images]
    device = policy.device
    return ModelInputs(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=position_ids.to(device),
        next_position=next_position.to(device),
        pixel_values=torch.cat([image.pixel_values for image in images]).to(device) if images else None,
        image_grid_thw=torch.tensor([image.grid for image in images]).to(device) if images else None,
    )


def _check_row(token_ids: torch.Tensor, image_tokens: Sequence[int], image_token_id: int) -> None:
    if not len(token_ids):
        raise ValueError("a row is empty")
    held = int((token_ids == image_token_id).sum())
    if held != sum(image_tokens):
        raise ValueError(
            f"a row holds {held} image tokens, its {len(image_tokens)} pictures are {sum(image_tokens)}"
        )


def _rotary_positions(
    model: Any, ids: torch.Tensor, grids: Sequence[tuple[int, int, int]], image_token_id: int
) -> torch.Tensor:
    """Positions [3, L] of one unpadded row, from the model's own rule."""
    if not grids:
        return torch.arange(len(ids)).expand(3, -1)
    positions, _ = model.model.get_rope_index(
        ids[None],
        mm_token_type_ids=(ids == image_token_id).int()[None],
        image_grid_thw=torch.tensor(grids),
    )
    return torch.as_tensor(positions[:, 0])
