"""vLLM's weight transfer over gloo: its NCCL backend's handshake, for machines without a GPU.

vLLM has no such backend of its own. `register` adds it, in each process that sends or receives.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch.distributed import ProcessGroup
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitInfo
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from arpo.rollout.engines.vllm.cpu import repack_tied_head

BACKEND = "gloo"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the sender waits, and the number of processes with it. It is rank 0; worker w is rank 1 + w."""

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    """Of meeting, and of each parameter."""


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):  # type: ignore[misc]
    """The sender's side of `GlooInitInfo`."""

    backend: ClassVar[str] = BACKEND

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


class GlooWeightTransferEngine(NCCLWeightTransferEngine):  # type: ignore[misc]
    """A worker's side: receives each parameter by a broadcast."""

    init_info_cls = GlooInitInfo
    model_update_group: ProcessGroup | None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the sender's group."""
        self.shutdown()
        self.model_update_group = _join(init_info, 1 + self.parallel_config.rank)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive and load, parameter by parameter."""
        self.model.load_weights(self._received(update_info))

    def finish_weight_update(self) -> None:
        """All parameters are there."""
        super().finish_weight_update()
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leave the group; what still waits in it fails."""
        _leave(self.model_update_group)
        self.model_update_group = None

    def _received(self, update_info: NCCLWeightTransferUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in described:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            _broadcast(self.model_update_group, tensor)
            yield name, tensor


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
    """The sender's side. The order of calls is the NCCL backend's."""

    init_info_cls = GlooTrainerInitInfo
    model_update_group: ProcessGroup | None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: Any = None
    ) -> GlooTrainerWeightTransferEngine:
        """Meet the workers, who wait inside their own call."""
        engine = cls(client=client, source=source)
        described = GlooInitInfo(
            init_info.master_address, init_info.master_port, init_info.world_size, init_info.timeout_s
        )
        with ThreadPoolExecutor(1) as thread:
            joined = thread.submit(client.init_weight_transfer_engine, asdict(described))
            engine.model_update_group = _join(described, 0)
            joined.result()
        return engine

    def shutdown(self) -> None:
        """Leave the group; what still waits in it fails."""
        _leave(self.model_update_group)
        self.model_update_group = None

    def _broadcast(self, source: Any, meta: list[Any]) -> None:
        for _, tensor in self._checked_iter(source, meta):
            _broadcast(self.model_update_group, tensor.contiguous())


def _join(info: GlooInitInfo, rank: int) -> ProcessGroup:
    group: ProcessGroup = stateless_init_torch_distributed_process_group(
        info.master_address,
        info.master_port,
        rank,
        info.world_size,
        BACKEND,
        timeout=timedelta(seconds=info.timeout_s),
    )
    return group


def _leave(group: ProcessGroup | None) -> None:
    if group is not None:
        group.abort()


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    group.broadcast([tensor]).wait()


def register() -> None:
    """Make the backend known to vLLM in this process; calling it again is harmless."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
        WeightTransferTrainerFactory.register_engine(BACKEND, GlooTrainerWeightTransferEngine)
