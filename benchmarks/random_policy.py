"""Qwen2.5-VL policies of any size with random weights, and trajectories for them: what the learner's benchmarks run on.

Nothing is downloaded: the model is made on the device from a config, the tokenizer is the tiny policy's. Sampled ids
are drawn from the part of the vocabulary that this tokenizer does not use, which a real one would.

Trajectories look like those of a GUI agent: a system prompt and an instruction, then turns of one screenshot and one
reply. The members of a group share the prompt and the first screenshot. The number of turns is drawn log-uniformly,
so that some episodes end early and some run to the limit; that is an assumption, not a record of real runs.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLConfig

from arpo.policy.attention import PACKED_ATTENTION
from arpo.policy.encoder import ChatEncoder
from arpo.policy.images import ImageEncoder
from arpo.policy.load import Policy
from arpo.policy.lora import Lora, inject
from arpo.policy.threads import leave_a_core
from arpo.policy.tiny import build_tiny
from arpo.trajectory import GroupMember, ImageRef, Trajectory, Turn

SYSTEM = "You are a GUI agent. You see a screenshot and answer with a thought and one action."
INSTRUCTION = (
    "Make the header row of the sheet bold, then save the file under its own name and say that it is done."
)
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE
"""Pixels a side that one image token stands for."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL. tied: the output head is the embedding."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_intermediate: int
    vision_depth: int
    vision_heads: int
    vision_full: tuple[int, ...]
    """Vision blocks whose attention sees the whole picture; the others see windows of 112×112 pixels."""

    def config(self, tokenizer: Any) -> Qwen2_5_VLConfig:
        """For transformers; control tokens are the tokenizer's."""
        head = self.hidden // self.heads
        ids = tokenizer.get_vocab()
        return Qwen2_5_VLConfig(
            text_config={
                "vocab_size": self.vocabulary,
                "hidden_size": self.hidden,
                "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "max_position_embeddings": 128_000,
                "bos_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    # Qwen's proportions of time, height and width: 16, 24 and 24 of 64 frequencies
                    "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
                },
            },
            vision_config={
                "depth": self.vision_depth,
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_intermediate,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.hidden,
                "fullatt_block_indexes": list(self.vision_full),
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "window_size": 112,
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=self.tied,
        )


def random_policy(
    shape: Shape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    plain_attention: bool,
    lora_rank: int = 0,
    seed: int = 0,
) -> Policy:
    """A policy with a frozen vision tower and activation checkpointing; the same seed gives the same weights.

    plain_attention: transformers' own attention in place of the packed one. lora_rank: 0 trains all text weights.
    """
    if device.type == "cpu":
        leave_a_core()
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(Path(folder) / "tiny", [SYSTEM, INSTRUCTION], 0)
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tiny")
        # as `load_policy` does; pictures are drawn at the size that the model sees, so no bound applies
        bounds = {"shortest_edge": CELL * CELL, "longest_edge": 1 << 30}
        processor = AutoImageProcessor.from_pretrained(Path(folder) / "tiny", backend="pil", size=bounds)
    text = "sdpa" if plain_attention else PACKED_ATTENTION
    attention = {"": "sdpa", "text_config": text, "vision_config": "sdpa"}
    torch.manual_seed(seed)
    with device:
        model = AutoModelForImageTextToText.from_config(
            shape.config(tokenizer), dtype=dtype, attn_implementation=attention
        )
    model.model.visual.requires_grad_(requires_grad=False)
    lora = Lora(rank=lora_rank, alpha=lora_rank) if lora_rank else None
    if lora is not None:
        inject(model, lora, seed=seed)
        model.to(device)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encoder = ChatEncoder(
        tokenizer.backend_tokenizer, factor=CELL, min_pixels=CELL * CELL, max_pixels=1 << 30
    )
    suppressed = torch.zeros(shape.vocabulary, dtype=torch.bool, device=device)
    suppressed[[encoder.image_token_id, encoder.video_token_id]] = True
    return Policy(
        model=model,
        tokenizer=tokenizer,
        encoder=encoder,
        images=ImageEncoder(processor),
        processor=processor,
        suppressed=suppressed,
        pad_token_id=tokenizer.pad_token_id,
        lora=lora,
    )


@dataclass(frozen=True)
class Mix:
    """Trajectories: `groups` × `members`, each of `turns` (least, most) turns, replies of `reply` (least, most) tokens.

    width, height: of a screenshot in pixels, multiples of 28, so that the model sees it as it is.
    """

    groups: int
    members: int
    turns: tuple[int, int]
    reply: tuple[int, int]
    width: int
    height: int

    @property
    def screenshot_tokens(self) -> int:
        """Image tokens of one screenshot."""
        return self.width // CELL * (self.height // CELL)


def trajectories(
    policy: Policy, shape: Shape, mix: Mix, seed: int = 0
) -> tuple[list[list[GroupMember]], dict[str, bytes]]:
    """Groups of trajectories, and their encoded screenshots by sha256."""
    rng = random.Random(seed)
    pictures: dict[str, bytes] = {}
    groups = []
    for group in range(mix.groups):
        first = _draw(rng, mix, pictures)
        members = [_trajectory(policy, shape, mix, rng, pictures, first, group) for _ in range(mix.members)]
        # one success a group at least, and one failure: equal rewards would give no gradient
        scores = [1.0, 0.0, *(float(rng.random() < 0.4) for _ in members[2:])]
        groups.append(
            [
                GroupMember(trajectory=trajectory.model_copy(update={"score": score}))
                for trajectory, score in zip(members, scores, strict=False)
            ]
        )
    return groups, pictures


def describe(groups: Sequence[Sequence[GroupMember]]) -> str:
    """The mix in one line."""
    rows = [member.trajectory for group in groups for member in group]
    lengths = sorted(len(row.token_ids) for row in rows)
    sampled = sum(sum(row.loss_mask) for row in rows)
    turns = [len(row.turns) for row in rows]
    return (
        f"{len(rows)} trajectories in {len(groups)} groups: {min(turns)} to {max(turns)} turns (mean {fmean(turns):.1f}), "
        f"{lengths[0]} to {lengths[-1]} tokens (mean {fmean(lengths):.0f}), {100 * sampled / sum(lengths):.1f} % of "
        f"{sum(lengths)} tokens sampled"
    )


def _between(rng: random.Random, bounds: tuple[int, int]) -> int:
    """Log-uniform in [least, most]."""
    least, most = bounds
    return min(most, int(math.exp(rng.uniform(math.log(least), math.log(most + 1)))))


def _trajectory(
    policy: Policy,
    shape: Shape,
    mix: Mix,
    rng: random.Random,
    pictures: dict[str, bytes],
    first: str,
    group: int,
) -> Trajectory:
    encoder = policy.encoder
    ids = [*encoder.text_message("system", SYSTEM), *encoder.text_message("user", INSTRUCTION)]
    mask, images, turns = [False] * len(ids), [], []
    for number in range(_between(rng, mix.turns)):
        sha256 = first if number == 0 else _draw(rng, mix, pictures)
        message, tokens = encoder.image_message(mix.width, mix.height)
        images.append(ImageRef(sha256=sha256, width=mix.width, height=mix.height, tokens=tokens))
        context = [*message, *encoder.generation_prompt()]
        reply = [
            rng.randrange(len(policy.tokenizer), shape.vocabulary) for _ in range(_between(rng, mix.reply))
        ]
        closing = encoder.close_turn(stopped=False)
        start = len(ids) + len(context)
        ids += [*context, *reply, *closing]
        mask += [False] * len(context) + [True] * len(reply) + [False] * len(closing)
        turns.append(
            Turn(
                start=start, end=start + len(reply), text="", actions=[], policy_version=0, observation=sha256
            )
        )
    uniform = -math.log(shape.vocabulary)
    return Trajectory(
        episode_id=f"{group}/{rng.random()}",
        task_id=f"task-{group}",
        domain="benchmark",
        instruction=INSTRUCTION,
        group_id=f"group-{group}",
        token_ids=ids,
        loss_mask=mask,
        logprobs=[uniform + rng.uniform(-0.5, 0.5) if sampled else 0.0 for sampled in mask],
        images=images,
        turns=turns,
        score=0.0,
        format=0.0,
        started_at=0.0,
        duration_s=1.0,
    )


def _draw(rng: random.Random, mix: Mix, pictures: dict[str, bytes]) -> str:
    """A screenshot of rectangles; its sha256."""
    image = Image.new("RGB", (mix.width, mix.height), tuple(rng.randrange(256) for _ in range(3)))
    canvas = ImageDraw.Draw(image)
    for _ in range(30):
        x, y = rng.randrange(mix.width), rng.randrange(mix.height)
        corner = (x + rng.randrange(mix.width // 3), y + rng.randrange(mix.height // 3))
        canvas.rectangle(((x, y), corner), fill=tuple(rng.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    pictures[sha256] = data
    return sha256
