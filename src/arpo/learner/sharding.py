"""The policy with its weights sharded over the ranks (FSDP2).

Invariant: one rank runs the same code as many. What is trained is a DTensor, sharded by rows of the weight; a
frozen vision tower is whole on every rank, so that each can encode its own pictures when it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from arpo.config.sections import LearnerSection
from arpo.learner.ranks import Ranks
from arpo.policy.load import Policy
from arpo.policy.logprobs import TokenRow, packed_logprobs
from arpo.policy.lora import merged
from arpo.policy.vision import VisionTower
from arpo.protocol.problems import ConfigError
from arpo.trajectory.store import ImageSource


class ShardedPolicy(nn.Module):
    """A policy as one module: packed rows in, log-probs and entropies of their sampled tokens out.

    Takes the policy's model over: its parameters are sharded in place, and from then on only this module may
    call it. Raises ConfigError for a model that cannot be packed.
    """

    def __init__(self, policy: Policy, section: LearnerSection, ranks: Ranks) -> None:
        super().__init__()
        self.model = policy.model
        self._policy = policy
        self.tower = VisionTower(policy)
        self._chunk = section.logits_chunk
        self._ranks = ranks
        _check(self.model)
        _shard(self, section, ranks)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get gradients, by their names in the model."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def forward(
        self, rows: Sequence[TokenRow], images: ImageSource, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `packed_logprobs`. Without rows this rank only takes part in what the others need it for."""
        rows = rows or [TokenRow([self._policy.pad_token_id], (), ())]
        return packed_logprobs(
            self._policy, rows, images, temperature=temperature, tower=self.tower, chunk=self._chunk
        )

    def weights(self, *, wanted: bool) -> dict[str, torch.Tensor]:
        """See `Learner.weights`."""
        state = {}
        for name, parameter in self.model.named_parameters():
            whole = _whole(parameter.detach())
            if wanted or self._ranks.lead:
                state[name] = whole
        return merged(state, self._policy.lora) if self._policy.lora else state

    def forget_pictures(self) -> None:
        """The frozen tower's weights were written: forget what was computed with the old ones."""
        self.tower.forget()

    @contextmanager
    def exchanged(self, others: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the trained parameters have the values of `others`, and `others` theirs."""
        self._swap(others)
        try:
            yield
        finally:
            self._swap(others)

    @torch.no_grad()
    def _swap(self, others: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.trained.items():
            mine, other = local(parameter), local(others[name])
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, as a view; an ordinary tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local() if tensor.device_mesh.size() == 1 else tensor.full_tensor()


def _check(model: Any) -> None:
    text = model.config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ConfigError("model.path has sliding-window attention, which packed rows do not support")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError("model.path has an output head with a bias, which chunked log-probs do not support")


def _shard(module: ShardedPolicy, section: LearnerSection, ranks: Ranks) -> None:
    """Shard layer by layer, so that one layer's weights are whole at a time."""
    model = module.model
    compute = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if section.weights == "kahan" and compute != torch.bfloat16:
        raise ConfigError("learner.weights=kahan needs model.dtype=bfloat16; fix: learner.weights=fp32")
    if section.weights == "fp32" and compute == torch.bfloat16:
        for parameter in module.trained.values():
            parameter.data = parameter.data.float()
    # sums over ranks in fp32: bf16 would round at every addition
    policy = (
        MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        if compute == torch.bfloat16
        else MixedPrecisionPolicy()
    )
    offload = CPUOffloadPolicy() if section.cpu_offload and ranks.device.type == "cuda" else OffloadPolicy()
    vision, frozen_tower = model.model.visual, module.tower.frozen
    options: dict[str, Any] = {"mesh": ranks.mesh, "mp_policy": policy, "offload_policy": offload}
    for layer in model.model.language_model.layers:
        fully_shard(layer, **options)
    if not frozen_tower:
        for block in vision.blocks:
            fully_shard(block, **options)
    ignored = set(vision.parameters()) if frozen_tower else set()
    fully_shard(module, **options, reshard_after_forward=True, ignored_params=ignored)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # the loss is a mean over all ranks' tokens already, so gradients are summed
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
