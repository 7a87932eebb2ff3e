"""What the language model sees of a screenshot: the vision tower's features.

Invariant: a picture is known by its sha256 and decoded only when its features are computed; pixels do not
outlive that. Where the tower is frozen, a picture's features are computed once and remembered within a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from arpo.policy.images import EncodedImage
from arpo.policy.limits import FEATURES_KEPT_BYTES, PATCHES_AT_ONCE
from arpo.trajectory.store import ImageSource

if TYPE_CHECKING:
    from arpo.policy.load import Policy


@dataclass(frozen=True)
class ImageFeatures:
    """One picture as the language model reads it.

    grid: patches in time, height and width. embedding [tokens, hidden]: in place of the image tokens.
    deepstack: per level [tokens, hidden], added to the first layers' hidden states (Qwen3-VL only).
    """

    grid: tuple[int, int, int]
    embedding: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        return sum(tensor.nbytes for tensor in (self.embedding, *self.deepstack))

    def copy(self) -> ImageFeatures:
        """The same in memory of its own: a view of a batch keeps the whole batch."""
        return replace(
            self, embedding=self.embedding.clone(), deepstack=tuple(level.clone() for level in self.deepstack)
        )


class VisionTower:
    """Features of screenshots by hash, under the policy's vision weights.

    cache_bytes: bound of what a frozen tower remembers, in the device's memory; the picture that was used
    longest ago leaves first. Nothing is remembered while the tower is trained.
    """

    def __init__(self, policy: Policy, *, cache_bytes: int = FEATURES_KEPT_BYTES) -> None:
        self._policy = policy
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._used_bytes = 0

    @property
    def frozen(self) -> bool:
        """No parameter of the tower is trained."""
        return not any(p.requires_grad for p in self._policy.model.model.visual.parameters())

    def forget(self) -> None:
        """Drop what is remembered: the tower's weights have changed."""
        self._cached.clear()
        self._used_bytes = 0

    def features(self, hashes: Sequence[str], images: ImageSource) -> dict[str, ImageFeatures]:
        """The features of distinct pictures, by hash.

        A tower that is trained is called exactly once, with a blank picture (under the hash "") where there
        is none: its parameters are sharded, so every rank has to call it as often as the others do. Raises
        ValueError for bytes that are no picture, and whatever `images` raises.
        """
        wanted = list(dict.fromkeys(hashes))
        if not self.frozen:
            if not wanted:
                return {"": self._encode([self._blank()])[0]}
            return dict(zip(wanted, self._encode([self._pixels(h, images) for h in wanted]), strict=True))
        found = {}
        for name in wanted:
            if name in self._cached:
                self._cached.move_to_end(name)
                found[name] = self._cached[name]
        for part in self._batches([name for name in wanted if name not in found], images):
            with torch.no_grad():
                for (name, _), features in zip(part, self._encode([image for _, image in part]), strict=True):
                    found[name] = features.copy()
                    self._remember(name, found[name])
        return found

    def _batches(
        self, hashes: Sequence[str], images: ImageSource
    ) -> Iterator[list[tuple[str, EncodedImage]]]:
        """Pictures, decoded only now, in parts that the tower encodes together."""
        part: list[tuple[str, EncodedImage]] = []
        for name in hashes:
            image = self._pixels(name, images)
            if part and sum(len(other.pixel_values) for _, other in part) >= PATCHES_AT_ONCE:
                yield part
                part = []
            part.append((name, image))
        if part:
            yield part

    def _pixels(self, sha256: str, images: ImageSource) -> EncodedImage:
        return self._policy.images.decode(images(sha256))

    def _blank(self) -> EncodedImage:
        vision: Any = self._policy.model.config.vision_config
        side = vision.spatial_merge_size
        channels = getattr(vision, "in_channels", 3)
        width = channels * vision.temporal_patch_size * vision.patch_size**2
        return EncodedImage(pixel_values=torch.zeros(side * side, width), grid=(1, side, side), tokens=1)

    def _encode(self, pictures: Sequence[EncodedImage]) -> list[ImageFeatures]:
        device = self._policy.device
        outputs = self._policy.model.model.get_image_features(
            torch.cat([picture.pixel_values for picture in pictures]).to(device),
            torch.tensor([picture.grid for picture in pictures], device=device),
            return_dict=True,
        )
        levels = getattr(outputs, "deepstack_features", None) or []
        return [
            ImageFeatures(
                grid=picture.grid,
                embedding=outputs.pooler_output[index],
                deepstack=tuple(level[index] for level in levels),
            )
            for index, picture in enumerate(pictures)
        ]

    def _remember(self, name: str, features: ImageFeatures) -> None:
        self._cached[name] = features
        self._used_bytes += features.nbytes
        while self._used_bytes > self._cache_bytes and len(self._cached) > 1:
            _, oldest = self._cached.popitem(last=False)
            self._used_bytes -= oldest.nbytes
