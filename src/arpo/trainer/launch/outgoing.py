"""Weights in the process of a learner rank, on their way to engine actors: rank 0 sends to all, or, where engines are
colocated, each rank to the one on its GPU.

Invariant: what is sent of a publication is the same whenever it is sent, whatever the learner does meanwhile: while the
driver publishes, the learner waits; after that rank 0 has a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from arpo.config.model import Config
from arpo.rollout.engines.base import EngineError, EngineUnusableError
from arpo.rollout.engines.vllm.engine import DTYPES
from arpo.rollout.engines.vllm.weights import JOIN_S, WeightSender, choose_method, shapes_of
from arpo.trainer.launch.cluster import first_line
from arpo.trainer.launch.packed import Packed, pack


class Outgoing:
    """Publications by serial number, and a sender to each engine. One thread may send while another holds and keeps.

    lead: of rank 0, which keeps publications for engines that come late.
    """

    def __init__(self, config: Config, *, lead: bool) -> None:
        vllm = config.engine.vllm
        self._method = choose_method(vllm, gpu=torch.cuda.is_available())
        self._lead = lead
        self._colocated = config.colocated
        self._workers = vllm.tensor_parallel
        self._dtype = DTYPES[config.model.dtype]
        self._timeout_s = vllm.push_timeout_s
        self._held: dict[int, Mapping[str, torch.Tensor]] = {}
        self._kept: int | None = None
        self._senders: dict[int, tuple[Any, WeightSender]] = {}

    def hold(self, serial: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Begin a publication, of weights that stay as they are until `keep` or `drop`."""
        self._held[serial] = weights

    def keep(self, serial: int) -> None:
        """End a publication, if it has not ended: rank 0 copies it to the host's memory, for engines that come late. Those
        before it are dropped.
        """
        if serial == self._kept:
            return
        self._held = {serial: self._copied(serial) if self._lead else {}}
        self._kept = serial
        if self._colocated and torch.cuda.is_available():
            torch.cuda.empty_cache()  # the room that the weights had is the engine's

    def _copied(self, serial: int) -> dict[str, torch.Tensor]:
        return {n: t.detach().to("cpu", self._dtype, copy=True) for n, t in self._held[serial].items()}

    def drop(self, serial: int) -> None:
        """Forget a publication that has failed."""
        self._held.pop(serial, None)

    def send(self, number: int, actor: Any, serial: int, version: int) -> None:
        """Send a publication to an engine's workers, which sample as that version afterwards. Of a colocated engine's rank
        it is the only one, so the publication ends with it: then the GPU has room for the engine's caches.

        number: the engine's place; another actor than before in it is met anew. Raises EngineUnusableError when the actor
        is of no use any more: its process or one below it is gone, or does not answer in time. MisfitError when the
        weights do not fit, EngineError when only the transfer has failed.
        """
        ask = _Asking(actor, self._timeout_s)
        ask("pause", shapes_of(self._held[serial]))
        try:
            # no name for the weights here: they are to be gone before `resume`
            self._sender(number, actor, ask).send(self._held[serial])
        except Exception as error:
            self._senders.pop(number, None)  # it has left its group by itself
            raise _judged(error) from error
        finally:
            if self._colocated:
                self.keep(serial)
        ask("resume", version)

    def packed(self, serial: int) -> Packed:
        """A publication for the object store, in the type that the engines compute in."""
        return pack({n: t.detach().to("cpu", self._dtype) for n, t in self._held[serial].items()})

    def _sender(self, number: int, actor: Any, ask: _Asking) -> WeightSender:
        before, sender = self._senders.get(number, (None, None))
        if sender is not None and before == actor:
            return sender
        if sender is not None:
            sender.close()
        sender = WeightSender(
            self._method,
            lambda call, arguments: ask("control", call, arguments),
            workers=self._workers,
            dtype=self._dtype,
            timeout_s=self._timeout_s,
            address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        )
        self._senders[number] = actor, sender
        return sender


class _Asking:
    """Calls methods of an engine actor and waits, but not for ever."""

    def __init__(self, actor: Any, timeout_s: float) -> None:
        self._actor = actor
        self._timeout_s = timeout_s

    def __call__(self, method: str, *arguments: Any) -> None:
        # what is behind a sender's call is the sender's to end; among it is meeting the workers
        timeout_s = self._timeout_s + (JOIN_S if method == "control" else 0.0)
        try:
            ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout_s)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise EngineUnusableError(first_line(error)) from error
        except GetTimeoutError as error:
            raise EngineUnusableError(
                f"the engine has not answered `{method}` within {timeout_s:g} s"
            ) from error


def _judged(error: Exception) -> EngineError | EngineUnusableError:
    if isinstance(error, EngineError | EngineUnusableError):
        return error
    return EngineError(f"{type(error).__name__}: {first_line(error)}")


def sends(config: Config) -> bool:
    """Whether the learner sends to the engines itself: `vllm` can take weights from another process, `hf` cannot."""
    return config.engine.kind == "vllm" and config.engine.vllm.weight_transfer != "reload"


def senders(config: Config) -> int:
    """How many of the ranks, from the first, send to engines."""
    return config.launcher.engines if config.colocated else 1
