"""The learner's ranks in a run: this process leads, and the others follow it.

Invariant: however the leader ends, no follower outlives it: it lets them go, it kills those it has started, and one
whose leader is gone finds its connection closed.

Started by `arpo train` itself (one machine: it starts the others), or by torchrun (any number of machines: every
process is `arpo train`, and all but rank 0 follow).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import is_torchelastic_launched

from arpo.config.model import Config
from arpo.learner.lead import LeadLearner, follow
from arpo.learner.learner import Learner
from arpo.learner.ranks import Ranks, alone, join, leave
from arpo.policy.load import Policy
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.trainer.source import PolicySource

_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Orders:
    """What a follower has to know before the first step."""

    config: Config
    source: PolicySource


@contextmanager
def leading(config: Config, source: PolicySource, policy: Policy) -> Iterator[LeadLearner]:
    """The learner on all ranks, which are there inside. The policy's model is its from then on.

    Raises ConfigError when torchrun has started another number of processes than the configuration wants, ArpoError
    when a rank cannot be started.
    """
    size = config.learner_ranks
    if size == 1:
        yield LeadLearner(make_learner(config, policy, alone(policy.device)))
        return
    device = policy.device if policy.device.type == "cpu" else torch.device("cuda", 0)
    with _others(size, device) as ranks:
        ranks.share(Orders(config, source))
        lead = LeadLearner(make_learner(config, policy, ranks))
        yield lead
        lead.close()
        leave()


def follow_leader(device: Literal["auto", "cpu", "cuda"]) -> None:
    """Be one of the other ranks until the leader lets go. Raises ArpoError when the leader is gone.

    device: as `model.device`; with GPUs, the one of this process's number on its machine. Signals are the leader's to
    answer: it may need this rank to save what there is.
    answer: it may need this rank to save what there is.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    local_rank, rank, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if is_torchelastic_launched():
        ranks = join(place, rank=rank, size=size, address="env://")
    else:
        store = TCPStore(_HERE, int(os.environ["MASTER_PORT"]), is_master=False)
        store.set(str(rank), "here")
        ranks = join(place, rank=rank, size=size, store=store)
    try:
        orders: Orders = ranks.share(None)
        policy = orders.source.load(orders.config, adapters=True)
        follow(make_learner(orders.config, policy, ranks))
    except RuntimeError as error:
        raise ArpoError(f"rank {ranks.rank}: the leader is gone, or a step failed there: {error}") from error
    leave()


def make_learner(config: Config, policy: Policy, ranks: Ranks) -> Learner:
    """The learner of a run; every rank makes the same."""
    return Learner(
        policy,
        config.learner,
        config.replay,
        temperature=config.engine.temperature,
        seed=config.run.seed,
        ranks=ranks,
    )


@contextmanager
def _others(size: int, device: torch.device) -> Iterator[Ranks]:
    if is_torchelastic_launched():
        started = int(os.environ["WORLD_SIZE"])
        if started != size:
            raise ConfigError(
                f"torchrun has started {started} processes, but {size} ranks are configured; "
                f"fix: learner.ranks={started}"
            )
        yield join(device, rank=0, size=size, address="env://")
        return
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    children = {
        rank: subprocess.Popen(
            [sys.executable, "-m", "arpo.trainer.follower", device.type],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(1, size)
    }
    try:
        while not store.check([str(rank) for rank in children]):
            _raise_if_gone(children)
            time.sleep(0.05)
        yield join(device, rank=0, size=size, store=store)
        for child in children.values():
            child.wait(timeout=30)
    except RuntimeError as error:
        # what the leader notices of a follower's end is a closed connection
        _raise_if_gone(children, error)
        raise
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _raise_if_gone(
    children: Mapping[int, subprocess.Popen[bytes]], error: RuntimeError | None = None
) -> None:
    for rank, child in children.items():
        if child.poll() is not None:
            raise ArpoError(
                f"learner rank {rank} ended with exit code {child.returncode}; its last words are above"
            ) from error
