"""Tensors that N ranks hold in parts, written and read by N, by another number, and by a process without a group."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from arpo.learner import tensors

WEIGHT = torch.arange(15, dtype=torch.float32).reshape(5, 3)  # five rows: two ranks hold three and two
MOMENT = -torch.arange(4, dtype=torch.bfloat16)


def state(placements, *, filled: bool):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight, moment = (WEIGHT, MOMENT) if filled else (torch.zeros_like(WEIGHT), torch.zeros_like(MOMENT))
    return {
        "steps": torch.tensor(3 if filled else 0),
        "model": {"layer.weight": distribute_tensor(weight.clone(), mesh, placements)},
        "optimizer": {
            "adamw": {"layer.weight": {"exp_avg": distribute_tensor(moment.clone(), mesh, [Replicate()])}}
        },
    }


def rank(number: int, world: int, meeting: str, folder: Path, work) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=world)
    group = dist.new_group(backend="gloo")
    work(folder, group)
    dist.destroy_process_group()


def write(folder: Path, group) -> None:
    held = state([Shard(0)], filled=True)
    written = tensors.begin_save(held, folder, group)
    held["model"]["layer.weight"].to_local().fill_(99)
    written.result()


def check(folder: Path, group) -> None:
    into = state([Shard(0)], filled=False)
    tensors.load(into, folder, group)
    weight = into["model"]["layer.weight"]
    assert isinstance(weight, DTensor)
    assert torch.equal(weight.full_tensor(), WEIGHT)
    assert torch.equal(into["optimizer"]["adamw"]["layer.weight"]["exp_avg"].full_tensor(), MOMENT)
    assert int(into["steps"]) == 3


def fail(folder: Path, group) -> None:
    if dist.get_rank(group) == 1:  # its part cannot be written
        (folder / "__1_0.distcp").mkdir(parents=True)
    dist.barrier(group)
    with pytest.raises(CheckpointException):
        tensors.begin_save(state([Shard(0)], filled=True), folder, group).result(timeout=60)


def ranks(world: int, tmp_path: Path, name: str, folder: Path, work) -> None:
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(target=rank, args=(n, world, str(tmp_path / name), folder, work)) for n in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * world


def test_what_two_ranks_wrote_is_read_by_two_by_one_and_by_none(tmp_path: Path) -> None:
    folder = tmp_path / "tensors"
    ranks(2, tmp_path, "write", folder, write)
    ranks(2, tmp_path, "two", folder, check)
    ranks(1, tmp_path, "one", folder, check)
    read = tensors.read(folder, "model")
    assert read.keys() == {"layer.weight"}
    assert torch.equal(read["layer.weight"], WEIGHT)
    assert torch.equal(tensors.read(folder, "optimizer.adamw")["layer.weight.exp_avg"], MOMENT)


def test_what_one_process_wrote_without_a_group_is_read_by_two_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "tensors"
    plain = {
        "steps": torch.tensor(3),
        "model": {"layer.weight": WEIGHT},
        "optimizer": {"adamw": {"layer.weight": {"exp_avg": MOMENT}}},
    }
    tensors.begin_save(plain, folder).result()
    ranks(2, tmp_path, "two", folder, check)


def test_a_rank_that_cannot_write_fails_the_save_of_every_rank(tmp_path: Path) -> None:
    ranks(2, tmp_path, "fail", tmp_path / "tensors", fail)
