"""The shape of a vision-language model, read from its config.json alone.

Invariant: neither weights nor torch are needed, and the parameters that a shape counts are those that
transformers makes from the same configuration.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
_FAMILIES: tuple[Family, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class TextShape:
    """The language model. tied: the output head is the embedding. qk_norm: a norm on each head's query and key."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qk_norm: bool = False

    @property
    def query(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all heads' keys, and of their values."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        attention = self.hidden * (2 * self.query + 2 * self.key)
        # Qwen2's queries, keys and values have a bias; Qwen3's have norms instead
        attention += 2 * self.head_dim if self.qk_norm else self.query + 2 * self.key
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and as many of the output head."""
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Outside the layers: embedding, output head, last norm."""
        return self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All of the language model's."""
        return self.layers * self.layer_parameters + self.root_parameters

    def lora_parameters(self, rank: int) -> int:
        """Of the adapters of one layer: on its seven linear maps, as `arpo.policy.lora` puts them."""
        ends = [
            (self.hidden, self.query),
            (self.hidden, self.key),
            (self.hidden, self.key),
            (self.query, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        ]
        return rank * sum(a + b for a, b in ends)


@dataclass(frozen=True)
class VisionShape:
    """The vision tower. out: the language model's width. gated: its MLPs have a gate and its norms are RMS norms.

    levels: features of inner blocks that the language model's first layers get too (Qwen3-VL's deepstack).
    positions: learned position embeddings (Qwen3-VL).
    """

    hidden: int
    intermediate: int
    depth: int
    out: int
    patch: int
    gated: bool
    biased_patches: bool = False
    levels: int = 0
    positions: int = 0
    channels: int = 3
    frames: int = 2
    merge: int = 2

    @property
    def patch_values(self) -> int:
        """Numbers of one patch of pixels."""
        return self.channels * self.frames * self.patch**2

    @property
    def block_parameters(self) -> int:
        """Of one block."""
        attention = 4 * self.hidden**2 + 4 * self.hidden
        if self.gated:
            mlp, norms = 3 * self.hidden * self.intermediate + 2 * self.intermediate + self.hidden, 2
        else:
            mlp, norms = 2 * self.hidden * self.intermediate + self.intermediate + self.hidden, 4
        return attention + mlp + norms * self.hidden

    @property
    def parameters(self) -> int:
        """All of the tower's, its mergers included."""
        wide = self.hidden * self.merge**2
        merger = wide * wide + wide + wide * self.out + self.out
        merger_norm = self.hidden if self.gated else 2 * self.hidden
        # a level's norm comes after the merging of patches, so it is as wide as four of them
        levels = self.levels * (merger + 2 * wide)
        outside = self.patch_values * self.hidden + (self.hidden if self.biased_patches else 0)
        outside += self.positions * self.hidden
        return self.depth * self.block_parameters + merger + merger_norm + levels + outside


@dataclass(frozen=True)
class ModelShape:
    """A Qwen-VL."""

    family: Family
    text: TextShape
    vision: VisionShape

    @property
    def parameters(self) -> int:
        """All of them; a tied head counts once."""
        return self.text.parameters + self.vision.parameters


def parse_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a model's config.json; None when it is of no family that is known here, or lacks a number."""
    family = next((f for f in _FAMILIES if config.get("model_type") == f), None)
    if family is None:
        return None
    # files of older releases keep the language model's numbers at the top
    text = {**config, **(config.get("text_config") or {})}
    try:
        return ModelShape(family, _text(family, text), _vision(family, config["vision_config"], text))
    except (KeyError, TypeError):
        return None


def _text(family: Family, config: Mapping[str, Any]) -> TextShape:
    heads = config["num_attention_heads"]
    return TextShape(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3_vl",
    )


def _vision(family: Family, config: Mapping[str, Any], text: Mapping[str, Any]) -> VisionShape:
    common = {
        "depth": config.get("depth", 32),
        "merge": config.get("spatial_merge_size", 2),
        "frames": config.get("temporal_patch_size", 2),
        "channels": config.get("in_channels", config.get("in_chans", 3)),
    }
    match family:
        case "qwen2_vl":
            hidden = config.get("embed_dim", 1280)
            return VisionShape(
                hidden=hidden,
                intermediate=int(hidden * config.get("mlp_ratio", 4)),
                out=config.get("hidden_size", text["hidden_size"]),
                patch=config.get("patch_size", 14),
                gated=False,
                **common,
            )
        case "qwen2_5_vl":
            return VisionShape(
                hidden=config.get("hidden_size", 1280),
                intermediate=config.get("intermediate_size", 3420),
                out=config.get("out_hidden_size", text["hidden_size"]),
                patch=config.get("patch_size", 14),
                gated=True,
                **common,
            )
        case "qwen3_vl":
            return VisionShape(
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                out=config.get("out_hidden_size", text["hidden_size"]),
                patch=config.get("patch_size", 16),
                gated=False,
                biased_patches=True,
                levels=len(config.get("deepstack_visual_indexes", [8, 16, 24])),
                positions=config.get("num_position_embeddings", 2304),
                **common,
            )


def _qwen2(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, tied: bool
) -> TextShape:
    vocabulary = 151_936 if tied else 152_064
    return TextShape(hidden, intermediate, layers, heads, kv_heads, 128, vocabulary, tied)


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> TextShape:
    return TextShape(hidden, intermediate, layers, heads, 8, 128, 151_936, tied, qk_norm=True)


def _qwen2_vl(text: TextShape) -> ModelShape:
    vision = VisionShape(1280, 5120, depth=32, out=text.hidden, patch=14, gated=False)
    return ModelShape("qwen2_vl", text, vision)


def _qwen2_5_vl(text: TextShape) -> ModelShape:
    vision = VisionShape(1280, 3420, depth=32, out=text.hidden, patch=14, gated=True)
    return ModelShape("qwen2_5_vl", text, vision)


def _qwen3_vl(text: TextShape, hidden: int = 1024, intermediate: int = 4096, depth: int = 24) -> ModelShape:
    vision = VisionShape(
        hidden, intermediate, depth, text.hidden, patch=16, gated=False, biased_patches=True, levels=3,
        positions=2304,
    )  # fmt: skip
    return ModelShape("qwen3_vl", text, vision)


_QWEN2_2B = _qwen2(1536, 8960, 28, 12, 2, tied=True)
_QWEN2_3B = _qwen2(2048, 11_008, 36, 16, 2, tied=True)
_QWEN2_7B = _qwen2(3584, 18_944, 28, 28, 4, tied=False)
_QWEN2_72B = _qwen2(8192, 29_568, 80, 64, 8, tied=False)

WELL_KNOWN: dict[str, ModelShape] = {
    r"UI-TARS-1\.5-7B": _qwen2_5_vl(_QWEN2_7B),
    r"UI-TARS-2B-SFT": _qwen2_vl(_QWEN2_2B),
    r"UI-TARS-7B-(SFT|DPO)": _qwen2_vl(_QWEN2_7B),
    r"UI-TARS-72B-(SFT|DPO)": _qwen2_vl(_QWEN2_72B),
    r"Qwen2-VL-2B(-Instruct)?": _qwen2_vl(_QWEN2_2B),
    r"Qwen2-VL-7B(-Instruct)?": _qwen2_vl(_QWEN2_7B),
    r"Qwen2\.5-VL-3B-Instruct": _qwen2_5_vl(_QWEN2_3B),
    r"Qwen2\.5-VL-7B-Instruct": _qwen2_5_vl(_QWEN2_7B),
    r"Qwen3-VL-2B-(Instruct|Thinking)": _qwen3_vl(_qwen3(2048, 6144, 28, 16, tied=True)),
    r"Qwen3-VL-4B-(Instruct|Thinking)": _qwen3_vl(_qwen3(2560, 9728, 36, 32, tied=True)),
    r"Qwen3-VL-8B-(Instruct|Thinking)": _qwen3_vl(_qwen3(4096, 12_288, 36, 32, tied=False), 1152, 4304, 27),
}
"""Shapes of models on the hub, by a pattern of their names without the owner; from their published config.json."""


def model_shape(path: str) -> ModelShape | None:
    """The shape of `model.path`: a folder's, a hub name's in the local cache, or a well-known one; None: unknown."""
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        cached = _cached_config(path)
        if cached is None:
            name = path.rpartition("/")[2]
            known = (shape for pattern, shape in WELL_KNOWN.items() if re.fullmatch(pattern, name))
            return next(known, None) if "/" in path else None
        file = cached
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return parse_shape(document) if isinstance(document, dict) else None


def _cached_config(name: str) -> Path | None:
    if len(Path(name).parts) != 2 or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
