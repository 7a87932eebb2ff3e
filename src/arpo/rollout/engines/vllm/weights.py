"""New weights, from whoever has them into vLLM's workers.

Invariant: nothing is sent unless it is all of the model's parameters with their shapes, so weights that do not fit
leave the old ones in place. Parameters keep the names that transformers gives them: vLLM's models map those themselves,
and refuse a name that they do not know.

A `WeightSender` can work in any process that reaches the engine: the engine's own (`VllmEngine.push`), or a learner's,
which then sends from its GPU without a detour.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from arpo.policy.load import blank_model
from arpo.rollout.engines.base import EngineError

Method = Literal["nccl", "ipc", "gloo", "reload"]
"""`nccl`, `ipc` (CUDA, on one GPU), `gloo` (CPU): vLLM's native weight transfer. `reload`: through a file in memory."""

Control = Callable[[str, Mapping[str, Any]], None]
"""Calls a method of all of vLLM's workers by name and waits for it: `VllmEngine.control`, from wherever one is."""

CONTROLS = frozenset(
    {
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "load_file",
    }
)
"""What a sender calls."""


class Manifest:
    """Names and shapes of a model's parameters, from its folder's configuration."""

    def __init__(self, folder: str) -> None:
        with torch.device("meta"):
            model = blank_model(folder, "float32")
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def check(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raises EngineError when these are not all parameters with their shapes."""
        wrong = {
            name
            for name in self._shapes.keys() | weights.keys()
            if name not in weights or name not in self._shapes or weights[name].shape != self._shapes[name]
        }
        if wrong:
            raise EngineError(
                f"weights do not fit the engine's model: {len(wrong)} parameters, {min(wrong)} first"
            )


def choose_method(wanted: str, *, gpu: bool, colocated: bool) -> Method:
    """What `engine.vllm.weight_transfer` stands for on this machine."""
    if wanted == "auto":
        return ("ipc" if colocated else "nccl") if gpu else "gloo"
    methods: dict[str, Method] = {"nccl": "nccl", "ipc": "ipc", "gloo": "gloo", "reload": "reload"}
    return methods[wanted]


class WeightSender:
    """Sends weights to the workers of one engine. For one thread at a time; its calls block.

    workers: how many the engine has. dtype: what the engine computes in; weights travel in it. address: of this
    machine as the workers see it.
    """

    def __init__(
        self,
        method: Method,
        control: Control,
        *,
        workers: int,
        dtype: torch.dtype,
        address: str = "127.0.0.1",
    ) -> None:
        self._method = method
        self._control = control
        self._workers = workers
        self._dtype = dtype
        self._address = address
        self._weights: Mapping[str, torch.Tensor] = {}
        self._native: Any = None

    def send(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Send whole parameters by name. Raises whatever the transfer raises; the engine then has no usable weights."""
        if self._method == "reload":
            self._reload(weights)
            return
        self._weights = weights
        try:
            if self._native is None:
                self._native = self._join()
            self._native.send_weights()
        except Exception:
            self._native = None  # the next attempt meets the workers anew
            raise
        finally:
            self._weights = {}

    def close(self) -> None:
        """Leave the workers' group."""
        if self._native is not None:
            self._native.shutdown()
            self._native = None

    def _tensors(self, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._weights.items():
            yield name, tensor.detach().to(device, self._dtype).contiguous()

    def _reload(self, weights: Mapping[str, torch.Tensor]) -> None:
        shared = Path("/dev/shm")  # noqa: S108 # in memory; the workers are on this machine
        with tempfile.TemporaryDirectory(
            prefix="arpo-push-", dir=shared if shared.is_dir() else None
        ) as folder:
            path = str(Path(folder) / "weights.safetensors")
            # copied: parameters may share memory, which the format refuses
            save_file({n: t.detach().to("cpu", self._dtype, copy=True) for n, t in weights.items()}, path)
            self._control("load_file", {"path": path})

    def _join(self) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        place = torch.device("cpu") if self._method == "gloo" else torch.device("cuda")
        return WeightTransferTrainerFactory.trainer_init(
            self._init_info(), client=_Client(self._control), source=_source(self, place)
        )

    def _init_info(self) -> Any:
        if self._method == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=True)
        port, size = _free_port(), 1 + self._workers
        if self._method == "gloo":
            from arpo.rollout.engines.vllm.gloo import GlooTrainerInitInfo, register

            register()
            return GlooTrainerInitInfo(self._address, port, size, rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(self._address, port, size, rank=0)


class _Client:
    """vLLM's `VLLMWeightSyncClient`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._control("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._control("start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self._control("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._control("finish_weight_update", {})


def _source(sender: WeightSender, device: torch.device) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        """What the sender is sending at the moment."""

        def metadata(self) -> list[Any]:
            return [
                ParamMeta(name, sender._dtype, tuple(tensor.shape))
                for name, tensor in sender._weights.items()
            ]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return sender._tensors(device)

    return Source()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
