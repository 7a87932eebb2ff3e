"""New weights, from whoever has them into vLLM's workers.

Invariant: nothing is sent unless it is all of the model's parameters with their shapes, so weights that do not fit
leave the old ones in place. Parameters keep the names that transformers gives them: vLLM's models map those themselves,
and refuse a name that they do not know.

A `WeightSender` can work in any process that reaches the engine: the engine's own (`VllmEngine.push`), or a learner's,
which then sends from its GPU without a detour. Whatever becomes of the engine meanwhile, a sender returns or raises
within its time.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from arpo.config.sections import VllmSection
from arpo.policy.load import blank_model
from arpo.rollout.engines.base import EngineError, EngineUnusableError
from arpo.rollout.engines.vllm.bounded import bounded

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

JOIN_S = 60.0
"""Meeting the workers takes no longer than this, if it succeeds."""


class MisfitError(EngineError):
    """Weights are not the model's. The engine goes on with those that it has."""


class Manifest:
    """Names and shapes of a model's parameters, from its folder's configuration."""

    def __init__(self, folder: str) -> None:
        with torch.device("meta"):
            model = blank_model(folder, "float32")
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises MisfitError when these are not the shapes of all parameters."""
        wrong = {
            name
            for name in self._shapes.keys() | shapes.keys()
            if name not in shapes
            or name not in self._shapes
            or tuple(shapes[name]) != tuple(self._shapes[name])
        }
        if wrong:
            raise MisfitError(
                f"weights do not fit the engine's model: {len(wrong)} parameters, {min(wrong)} first"
            )


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """What a `Manifest` checks."""
    return {name: tuple(weights[name].shape) for name in weights}


def choose_method(section: VllmSection, *, gpu: bool) -> Method:
    """What `engine.vllm.weight_transfer` stands for on this machine."""
    if section.weight_transfer != "auto":
        return section.weight_transfer
    if not gpu:
        return "gloo"
    if not section.colocate:
        return "nccl"
    return "ipc" if section.tensor_parallel == 1 else "reload"  # a sender's memory is on one GPU


class WeightSender:
    """Sends weights to the workers of one engine. For one thread at a time; its calls block, each no longer than it may.

    workers: how many the engine has. dtype: what the engine computes in; weights travel in it. timeout_s: for one
    `send`, besides `JOIN_S` for meeting the workers. address: of this machine as the workers see it.
    """

    def __init__(
        self,
        method: Method,
        control: Control,
        *,
        workers: int,
        dtype: torch.dtype,
        timeout_s: float,
        address: str = "127.0.0.1",
    ) -> None:
        self._method = method
        self._control = control
        self._workers = workers
        self._dtype = dtype
        self._timeout_s = timeout_s
        self._address = address
        self._session: _Session | None = None

    def send(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Send whole parameters by name. The engine has no usable weights when this raises: what the engine's calls
        raise, EngineUnusableError when the workers keep it waiting, TimeoutError when they do not come to meet it, or
        whatever the transfer raises.
        """
        if self._method == "reload":
            self._reload(weights)
            return
        try:
            if self._session is None:
                self._session = self._join()
            self._session.send(weights, self._timeout_s)
        except Exception:
            self.close()  # the next attempt meets the workers anew
            raise

    def close(self) -> None:
        """Leave the workers' group; a transfer that still waits for them ends."""
        if self._session is not None:
            self._session.end()
            self._session = None

    def _reload(self, weights: Mapping[str, torch.Tensor]) -> None:
        shared = Path("/dev/shm")  # noqa: S108 # in memory; the workers are on this machine
        with tempfile.TemporaryDirectory(
            prefix="arpo-push-", dir=shared if shared.is_dir() else None
        ) as folder:
            path = str(Path(folder) / "weights.safetensors")
            # copied: parameters may share memory, which the format refuses
            save_file({n: t.detach().to("cpu", self._dtype, copy=True) for n, t in weights.items()}, path)
            self._control("load_file", {"path": path})

    def _join(self) -> _Session:
        place = torch.device("cpu") if self._method == "gloo" else torch.device("cuda")
        client, source = _Client(self._control), _source(place, self._dtype)
        try:
            native = bounded(lambda: self._meet(client, source), client.failure, JOIN_S)
        except Exception:
            client.closed = True
            raise
        return _Session(native, client, source)

    def _meet(self, client: _Client, source: Any) -> Any:
        """vLLM's side of the sender, which the workers know from here on."""
        if self._method == "ipc":
            from arpo.rollout.engines.vllm.ipc import own_gpu_sender

            return own_gpu_sender(client, source)
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        return WeightTransferTrainerFactory.trainer_init(self._group(), client=client, source=source)

    def _group(self) -> Any:
        """The group of the sender and the workers."""
        port, size = _free_port(), 1 + self._workers
        if self._method == "gloo":
            from arpo.rollout.engines.vllm.gloo import GlooTrainerInitInfo, register

            register()
            return GlooTrainerInitInfo(self._address, port, size, self._timeout_s, rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(self._address, port, size, rank=0)


class _Session:
    """A group with the workers."""

    def __init__(self, native: Any, client: _Client, source: Any) -> None:
        self._native = native
        self._client = client
        self._source = source

    def send(self, weights: Mapping[str, torch.Tensor], timeout_s: float) -> None:
        self._source.weights = weights
        try:
            bounded(self._native.send_weights, self._client.failure, timeout_s)
        except TimeoutError as error:
            raise EngineUnusableError(
                f"vLLM's workers have not taken new weights within {timeout_s:g} s; fix, if they only need longer: a "
                "larger engine.vllm.push_timeout_s"
            ) from error
        finally:
            self._source.weights = {}

    def end(self) -> None:
        self._client.closed = True
        self._native.shutdown()


class _Client:
    """vLLM's `VLLMWeightSyncClient`. failure: of the first call that failed. closed: whoever still uses it may not call."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.failure: Future[None] = Future()
        self.closed = False

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._call("start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update", {})

    def _call(self, name: str, arguments: Mapping[str, Any]) -> None:
        if self.closed:
            raise EngineError("this transfer was given up")
        try:
            self._control(name, arguments)
        except Exception as error:
            if not self.failure.done():
                self.failure.set_exception(error)
            raise


def _source(device: torch.device, dtype: torch.dtype) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        """What is being sent at the moment."""

        weights: Mapping[str, torch.Tensor] = {}

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self.weights.items():
                yield name, tensor.detach().to(device, dtype).contiguous()

    return Source()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
