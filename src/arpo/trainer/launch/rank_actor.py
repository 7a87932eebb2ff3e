"""What runs in the process of a learner rank that is a Ray actor.

Invariant: one thread does what the driver asks, in the order in which it asks; only waiting for a save, and sending
weights that are copied or do not change, stand beside it.
"""

from __future__ import annotations

import logging
import os
import socket
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from torch._C._distributed_c10d import TCPStore

from arpo.files import write_atomic
from arpo.learner.learner import Learner
from arpo.learner.ranks import join
from arpo.protocol.problems import ConfigError
from arpo.telemetry import export, names, tracing
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.outgoing import Outgoing, senders
from arpo.trainer.launch.packed import Packed, pack
from arpo.trainer.ranks import make_learner

log = logging.getLogger(__name__)

WATCH = "watch"
"""The concurrency group of what may take as long as a save."""

SEND = "send"
"""The concurrency group of what may take as long as an engine that does not answer."""


class RankActor:
    """One rank. folder: of the driver, where relative paths of the configuration begin, if this machine has it too."""

    def __init__(self, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._store: TCPStore | None = None
        self._learner: Learner | None = None
        self._saved: Future[None] | None = None
        self._outgoing: Outgoing | None = None
        self._rank = 0

    def find(self, marker: Path, reply: Path) -> None:
        """Answer a file that the driver has written. Raises ConfigError when it cannot be seen, or not be answered."""
        try:
            write_atomic(reply, marker.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"the run directory {marker.parent} is not there for the learner rank on {socket.gethostname()}: "
                f"{error.strerror}; fix: run.dir on storage that all nodes have under the same absolute path"
            ) from error

    def meet(self) -> tuple[str, int]:
        """Make the place where the ranks meet, on rank 0; returns its address."""
        self._store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)  # noqa: S104 - ranks of other machines
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return host, self._store.port

    def join(self, plan: Plan, rank: int, size: int, address: tuple[str, int]) -> None:
        """Meet the others and make the learner. Raises ConfigError when the policy cannot be loaded."""
        self._rank = rank
        export.begin(names.LEARNER_RANK, log.warning)
        store = self._store or TCPStore(*address, is_master=False)
        on_gpu = plan.config.model.device != "cpu" and torch.cuda.is_available()
        place = torch.device("cuda", 0) if on_gpu else torch.device("cpu")  # a rank sees its own GPU alone
        ranks = join(place, rank=rank, size=size, store=store)
        self._learner = make_learner(plan.config, plan.source.load(plan.config, adapters=True), ranks)
        if rank < senders(plan.config):
            self._outgoing = Outgoing(plan.config, lead=ranks.lead)

    def call(self, traceparent: str | None, method: str, *arguments: Any) -> Any:
        """A method of `Learner`. traceparent: of the caller's span."""
        tracing.adopt(traceparent)
        with tracing.span(names.LEARNER_CALL, {names.METHOD: method, names.RANK: self._rank}):
            return getattr(self._ready, method)(*arguments)

    @ray.method(num_returns=2)
    def weights(self) -> tuple[Packed, None]:
        """The gathered weights, for whoever samples, and that they are there, for the driver."""
        return pack(self._ready.weights()), None

    def hold(self, serial: int) -> None:
        """Gather the weights on the ranks that send, as the publication of that number."""
        weights = self._ready.weights(wanted=self._outgoing is not None)
        if self._outgoing is not None:
            self._outgoing.hold(serial, weights)

    def keep(self, serial: int) -> None:
        """See `Outgoing.keep`; of ranks that send alone, as the three that follow."""
        self._sending.keep(serial)

    def drop(self, serial: int) -> None:
        """See `Outgoing.drop`."""
        self._sending.drop(serial)

    @ray.method(concurrency_group=SEND)
    def send(self, number: int, actor: Any, serial: int, version: int) -> None:
        """See `Outgoing.send`."""
        self._sending.send(number, actor, serial, version)

    @ray.method(concurrency_group=SEND)
    def packed(self, serial: int) -> Packed:
        """See `Outgoing.packed`."""
        return self._sending.packed(serial)

    def begin_save(self, folder: Path) -> None:
        """Copy the state; it is written while other calls go on."""
        self._saved = self._ready.begin_save(folder)

    @ray.method(concurrency_group=WATCH)
    def saved(self) -> None:
        """Wait until what `begin_save` copied is written; raises what that raised."""
        assert self._saved is not None  # noqa: S101 - the driver asks after begin_save
        self._saved.result()

    @property
    def _ready(self) -> Learner:
        assert self._learner is not None  # noqa: S101 - the driver asks after join
        return self._learner

    @property
    def _sending(self) -> Outgoing:
        assert self._outgoing is not None  # noqa: S101 - the driver asks a rank that sends, after join
        return self._outgoing
