"""Measured peaks, and models of any shape that a learner can train."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText

from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.learner.learner import Learner
from arpo.policy.load import _ATTENTION, Policy
from arpo.policy.lora import Lora, inject
from arpo.trainer.shapes import ModelShape, parse_shape
from arpo.trajectory import GroupMember, Trajectory
from policy_kit import Pictures, conversation, fresh_policy


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once during `work`, beyond those before it.

    Every allocation and release is recorded, so the figure is the same each time.
    """
    gc.collect()  # else what an earlier test left is given back in between
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass
class Case:
    """A model and a row. tower: vision width and depth; pictures: turns of the row, which is then a conversation."""

    architecture: str = "qwen2_5_vl"
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    vocabulary: int | None = None
    tower: tuple[int, int] = (64, 2)
    tokens: int = 512
    sampled: int = 256
    pictures: int = 0
    settings: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        return load_config(None, [*self.settings, "learner.logits_chunk=128", "hardware.gpus=0"])

    def policy(self) -> Policy:
        """An untrained one of this shape, with tiny's tokenizer."""
        section = self.config.model
        policy = fresh_policy(self.architecture)
        model_config = policy.model.config
        text, vision = model_config.get_text_config(), model_config.vision_config
        text.hidden_size, text.intermediate_size = self.hidden, self.intermediate
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = self.layers, 8, 2
        text.layer_types = ["full_attention"] * self.layers
        text.head_dim = self.hidden // 8
        quarter = text.head_dim // 8
        sections = [text.head_dim // 2 - 2 * quarter, quarter, quarter]
        text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        text.vocab_size = self.vocabulary or text.vocab_size
        vision.depth = self.tower[1]
        if self.architecture == "qwen2_vl":
            vision.embed_dim, vision.hidden_size = self.tower[0], self.hidden
        else:
            vision.hidden_size, vision.out_hidden_size = self.tower[0], self.hidden
            vision.intermediate_size = 2 * self.tower[0]
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(
            model_config, dtype=getattr(torch, section.dtype), attn_implementation=_ATTENTION
        ).eval()
        lora = None
        if section.lora.rank:
            lora = Lora(section.lora.rank, section.lora.alpha, section.lora.dropout)
            inject(model, lora, seed=0)
        if section.freeze_vision:
            model.model.visual.requires_grad_(False)
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        suppressed = torch.zeros(text.vocab_size, dtype=torch.bool)
        suppressed[[policy.encoder.image_token_id, policy.encoder.video_token_id]] = True
        return replace(policy, model=model, suppressed=suppressed, lora=lora)


def shape_of(policy: Policy) -> ModelShape:
    shape = parse_shape(policy.model.config.to_dict())
    assert shape is not None
    return shape


def rows_of(case: Case, policy: Policy, pictures: Pictures, number: int = 2) -> list[Trajectory]:
    """Rows that fill a packed one each."""
    if case.pictures:
        replies = ["Press."] * case.pictures
        return [conversation(policy, pictures, replies, seed=i, score=float(i)) for i in range(number)]
    mask = [place >= case.tokens - case.sampled for place in range(case.tokens)]
    whole = conversation(policy, pictures, ["Press."])
    update = {
        "token_ids": [5] * case.tokens,
        "loss_mask": mask,
        "logprobs": [-1.0] * case.tokens,
        "images": [],
    }
    return [whole.model_copy(update=update | {"turns": [], "score": float(i)}) for i in range(number)]


def learn(case: Case, policy: Policy, rows: list[Trajectory], pictures: Pictures) -> None:
    """Make a learner and take one step of two passes."""
    config = case.config
    section = config.learner.model_copy(update={"max_row_tokens": len(rows[0].token_ids)})
    learner = Learner(policy, section, config.replay, temperature=1.0, seed=0)
    learner.step([[GroupMember(trajectory=row, replayed=False) for row in rows]], pictures.__getitem__)
