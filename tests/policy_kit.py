"""A tiny policy and trajectories of it, for the tests of policy, engines, learner and replay buffer."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from arpo.policy.load import Policy, load_policy
from arpo.policy.tiny import Architecture, cached_tiny
from arpo.trajectory import ImageRef, Trajectory, Turn

MIN_PIXELS, MAX_PIXELS = 28 * 28 * 4, 28 * 28 * 24
CORPUS = [
    "You are a helpful assistant.",
    "You are a GUI agent. Press the blue button, then say that it is done.",
    "Thought: Press the button.\nAction: click(start_box='(640,400)')",
    "Thought: It is done.\nAction: finished()",
]


@cache
def tiny_folder(seed: int = 0, architecture: Architecture = "qwen2_5_vl") -> Path:
    return cached_tiny(Path(__file__).parent.parent / ".cache" / "tests", CORPUS, seed, architecture)


def fresh_policy(architecture: Architecture = "qwen2_5_vl", **options: Any) -> Policy:
    options = {"device": "cpu", "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS} | options
    return load_policy(tiny_folder(architecture=architecture), **options)


def picture(seed: int, width: int = 140, height: int = 84) -> bytes:
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randrange(width), rng.randrange(height)
        draw.rectangle([x, y, x + 30, y + 20], fill=tuple(rng.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Pictures(dict[str, bytes]):
    """Encoded pictures by sha256; `__getitem__` is what learner and buffer call."""

    def keep(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self[sha256] = data
        return sha256


def conversation(
    policy: Policy,
    pictures: Pictures,
    replies: Sequence[str | Sequence[int]],
    *,
    instruction: str = "Press the blue button.",
    score: float | None = 0.0,
    format: float = 0.0,
    task_id: str = "task",
    episode_id: str = "episode",
    behaviour: float = -1.0,
    policy_version: int = 0,
    seed: int = 0,
    stopped: bool = True,
) -> Trajectory:
    """A trajectory with a picture before each reply (a text, or sampled ids)."""
    encoder = policy.encoder
    ids = encoder.text_message("system", "You are a helpful assistant.")
    ids += encoder.text_message("user", instruction)
    mask = [False] * len(ids)
    images: list[ImageRef] = []
    turns: list[Turn] = []
    for number, reply in enumerate(replies):
        data = picture(1000 * seed + number)
        message, tokens = encoder.image_message(140, 84)
        sha256 = pictures.keep(data)
        images.append(ImageRef(sha256=sha256, width=140, height=84, tokens=tokens))
        context = [*message, *encoder.generation_prompt()]
        sampled = encoder.encode_reply(reply) if isinstance(reply, str) else list(reply)
        closing = encoder.close_turn(stopped)
        start = len(ids) + len(context)
        ids = [*ids, *context, *sampled, *closing]
        mask += [False] * len(context) + [True] * len(sampled) + [False] * len(closing)
        turns.append(
            Turn(
                start=start,
                end=start + len(sampled),
                text=encoder.decode(sampled),
                actions=[],
                policy_version=policy_version,
                observation=sha256,
            )
        )
    return Trajectory(
        episode_id=episode_id,
        task_id=task_id,
        domain="test",
        instruction=instruction,
        group_id="group",
        token_ids=ids,
        loss_mask=mask,
        logprobs=[behaviour if sampled else 0.0 for sampled in mask],
        images=images,
        turns=turns,
        score=score,
        format=format,
        started_at=0.0,
        duration_s=1.0,
    )
