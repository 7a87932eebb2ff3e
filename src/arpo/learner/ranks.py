"""The processes that train one policy together.

Invariant: all ranks of a group call the same collective operations in the same order. Rank 0 leads: it alone
talks to the rest of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")

# Followers wait for the leader's next word while it collects episodes, for hours where desktops are slow.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    device: where this rank's part of the model is. mesh: all ranks in one dimension. control: a gloo group for
    small messages between them. saving: one for writing and reading checkpoints together, which goes on while
    the ranks talk; None on a rank that is alone.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup
    saving: dist.ProcessGroup | None

    @property
    def lead(self) -> bool:
        """This is rank 0."""
        return self.rank == 0

    def share(self, item: Any) -> Any:
        """Rank 0's item, on every rank; what the others pass is ignored."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, item: T) -> list[T]:
        """Every rank's item in the order of ranks, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def sum(self, value: float) -> float:
        """The sum of a number over all ranks, in fp64."""
        return sum(self.gather(value))


def alone(device: torch.device) -> Ranks:
    """The only rank there is; joins no other process."""
    if not dist.is_initialized():
        dist.init_process_group(_backend(device), store=HashStore(), rank=0, world_size=1)
    return _ranks(device)


def join(
    device: torch.device,
    *,
    rank: int,
    size: int,
    address: str | None = None,
    store: Store | None = None,
) -> Ranks:
    """Meet the other ranks; returns when all are there.

    address: `tcp://host:port` of rank 0, the same for all, or `env://` under torchrun; or a store that all share.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(_backend(device), init_method=address, store=store, rank=rank, world_size=size)
    return _ranks(device)


def leave() -> None:
    """End this process's membership; the process may join again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _ranks(device: torch.device) -> Ranks:
    size = dist.get_world_size()
    return Ranks(
        rank=dist.get_rank(),
        size=size,
        device=device,
        mesh=init_device_mesh(device.type, (size,)),
        control=dist.new_group(backend="gloo", timeout=_PATIENCE),
        saving=dist.new_group(backend="gloo") if size > 1 else None,
    )


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
