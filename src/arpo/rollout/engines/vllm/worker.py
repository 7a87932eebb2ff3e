"""What runs inside vLLM's worker processes: mixed into the worker class (`worker_extension_cls`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.fusion.mm_input_norm import FusedMMInputNorm, build_mm_input_norm

from arpo.rollout.engines.vllm.cpu import repack_tied_head
from arpo.rollout.engines.vllm.gloo import register
from arpo.rollout.engines.vllm.leader import end_with_leader

register()
end_with_leader()


class WorkerExtension:
    """Methods that `collective_rpc` reaches by name. `self` is a vLLM worker."""

    model_runner: Any
    vllm_config: Any

    def load_file(self, path: str) -> None:
        """Take weights from a safetensors file, in checkpoint form; each worker keeps its shard."""
        self.model_runner.reload_weights(weights_iterator=_read(path))
        repack_tied_head(self.model_runner.get_model())

    def restore_input_norm(self) -> None:
        """Set the constants that normalise pixels, which `load_format=dummy` fills with noise as if they were weights."""
        with set_current_vllm_config(self.vllm_config):
            fresh = build_mm_input_norm(self.vllm_config.model_config)
        for module in self.model_runner.get_model().modules():
            if isinstance(module, FusedMMInputNorm):
                for name, constant in fresh.named_buffers():
                    module.get_buffer(name).copy_(constant)


def _read(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 # it is no dict
            yield name, file.get_tensor(name)
