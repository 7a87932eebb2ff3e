"""vLLM's weight transfer by CUDA IPC, from any one process to the engine on its own GPU.

vLLM's own sender belongs to a group of trainer ranks of which all send together, and the first on behalf of the others: it
would wait for every rank of the learner's process group, though each rank here has an engine of its own or none. And its
buffer has a fixed size, which the embedding of a 7B model does not fit into.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine

from arpo.policy.limits import WEIGHTS_AT_ONCE_BYTES


class OwnGpuSender(IPCTrainerWeightTransferEngine):  # type: ignore[misc]
    """Waits for no other rank."""

    def send_weights(self) -> None:
        """Send what the source has, through a buffer that any of it fits into."""
        sizes = [meta.dtype.itemsize * math.prod(meta.shape) for meta in self.source.metadata()]
        self.packed_buffer_size_bytes = max(*sizes, min(WEIGHTS_AT_ONCE_BYTES, sum(sizes)))
        super().send_weights()

    def _all_gather_and_merge_handles(self, handles: list[Any]) -> list[Any]:
        return handles

    @staticmethod
    def _post_send_sync() -> None:
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def own_gpu_sender(client: Any, source: Any) -> OwnGpuSender:
    """A sender of this process's GPU, known to the engine behind `client`. source: vLLM's `WeightSource`."""
    sender: OwnGpuSender = OwnGpuSender.trainer_init(
        IPCTrainerInitInfo(rank=0, packed=True), client=client, source=source
    )
    return sender
