"""Sampling with vLLM: an `AsyncLLM` and its workers, driven from one thread of this process.

Invariant: no request to vLLM lives across a change of weights. A push cuts short what is being sampled, waits until
vLLM is idle, changes the weights, empties every cache, and then continues each reply from the tokens that it had, as a
new request under the new version. So each token was sampled, from its first matrix product to its last, by the version
that it is tagged with; its key-value cache too is that version's. A reply pays for that with one more prefill.

vLLM's processes and this one end together: when one of theirs dies, every call raises EngineUnusableError; when this one
dies, however, they end by themselves (`worker.py`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import torch
from transformers import AutoConfig

from arpo.config.sections import VllmSection
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import EngineError, EngineUnusableError, Generation, Sampling
from arpo.rollout.engines.vllm.gate import Gate
from arpo.rollout.engines.vllm.leader import LEADER
from arpo.rollout.engines.vllm.prompts import Prompt, PromptReader
from arpo.rollout.engines.vllm.reply import Reply
from arpo.rollout.engines.vllm.weights import CONTROLS, Manifest, WeightSender, choose_method, shapes_of

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_T = TypeVar("_T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NO_WEIGHTS = "the engine has no weights; push some first"
_DEAD = "vLLM's processes have ended: one died, or was killed (for the memory that it took?); see what they printed"
_LOOK_S = 0.5
_WEIGHTS, _CACHE = "weights", "kv_cache"
"""vLLM's names for what it gives away as it sleeps."""


class VllmEngine:
    """An `Engine` on vLLM. Making it takes half a minute and more; the calls may come from any event loop.

    folder: a Hugging Face model folder, or a hub name. weights: without, the folder's weights are not read, nor need
    they be there; requests are refused until the first push. max_batch: replies sampled together. max_images: in
    one prompt. row_tokens: tokens of the longest prompt and reply, where `section.max_model_len` does not say.
    sender_elsewhere: weights are sent from another process by `section.weight_transfer`, between `pause` and `resume`;
    `push` then goes by reload, as this process has no GPU but the workers'.

    A seed is not honoured: draws come from vLLM's own stream and depend on what else is in the batch. A cancelled
    request is aborted. Raises ConfigError when vLLM is not installed, EngineError when it does not start. Every call
    raises EngineUnusableError once one of vLLM's processes has died.
    """

    def __init__(
        self,
        folder: str,
        section: VllmSection,
        *,
        dtype: Literal["float32", "bfloat16"],
        min_pixels: int,
        max_pixels: int,
        max_images: int,
        max_batch: int,
        row_tokens: int,
        weights: bool = True,
        policy_version: int = 0,
        seed: int = 0,
        sender_elsewhere: bool = False,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "engine.kind=vllm needs vLLM, which is not installed; fix: pip install 'arpo[vllm]'"
            )
        gpu = torch.cuda.is_available()
        method = choose_method(section, gpu=gpu)
        shape = AutoConfig.from_pretrained(folder)
        vision = shape.vision_config
        self._never = {shape.image_token_id: -torch.inf, shape.video_token_id: -torch.inf}
        self._prompts = PromptReader(
            image_token_id=shape.image_token_id,
            factor=vision.patch_size * vision.spatial_merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        self._manifest = Manifest(folder)
        self._sleeps = gpu and section.colocate
        self._version = policy_version
        self._unusable = "" if weights else _NO_WEIGHTS
        self._away: set[str] = set()
        self._closed = False
        self._calls: set[asyncio.Task[Any]] = set()
        longest = shape.get_text_config().max_position_embeddings
        arguments: dict[str, Any] = {
            "model": folder,
            "dtype": dtype,
            "seed": seed,
            "load_format": "auto" if weights else "dummy",
            "tensor_parallel_size": section.tensor_parallel,
            "max_model_len": section.max_model_len or min(row_tokens, longest),
            "max_num_seqs": max_batch,
            "gpu_memory_utilization": section.gpu_memory_utilization,
            "kv_cache_memory_bytes": int(section.kv_cache_gib * 2**30) or None,
            "enforce_eager": section.enforce_eager,
            "enable_prefix_caching": section.prefix_caching,
            "enable_sleep_mode": self._sleeps,
            "mm_processor_cache_gb": section.mm_cache_gib,
            "limit_mm_per_prompt": {"image": max_images, "video": 0},
            "mm_processor_kwargs": {"size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}},
            # of the distribution that is sampled from, and no defaults from the model's folder
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "worker_extension_cls": "arpo.rollout.engines.vllm.worker.WorkerExtension",
            "weight_transfer_config": {"backend": "gloo" if method == "reload" else method},
        }
        if method == "ipc":
            # handles of GPU memory are no plain data; they go from this process to its own children
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        os.environ[LEADER] = str(os.getpid())
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self._loop = asyncio.new_event_loop()
        self._gate = Gate()
        self._changing = asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-engine", daemon=True)
        self._thread.start()
        try:
            self._llm: AsyncLLM = self._submit(partial(_start, arguments)).result()
        except Exception as error:
            self._stop()
            raise _failure("vLLM did not start", error) from error
        self._sender = WeightSender(
            "reload" if sender_elsewhere else method,
            lambda call, arguments: self._submit(
                partial(self._call, partial(self._control, call, arguments))
            ).result(),
            workers=section.tensor_parallel,
            dtype=DTYPES[dtype],
            timeout_s=section.push_timeout_s,
        )

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], images: Sequence[bytes], sampling: Sampling
    ) -> Generation:
        """Continue a prompt; see `Engine.generate`. Raises EngineError."""
        return await self._there(partial(self._generate, list(prompt_ids), list(images), sampling))

    async def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Send new weights from this process; replies that are being sampled go on under the new version.

        weights: all parameters by name. Raises EngineError: with the old weights kept when names or shapes differ;
        when the transfer fails, nothing is sampled before a push succeeds.
        """
        self._manifest.check(shapes_of(weights))
        # shielded: weights that are half sent when the caller goes away must still become whole
        await asyncio.shield(asyncio.ensure_future(self._there(partial(self._push, weights, version))))

    async def pause(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Stop sampling, for a sender in another process. What was being sampled waits for `resume`, or a `push`.

        shapes: of what it will send. Raises EngineError, with nothing changed, when they do not fit.
        """
        self._manifest.check(shapes)
        await self._there(self._pause)

    async def control(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Pass a call of a `WeightSender` on to the workers. Raises ValueError for any other call."""
        await self._there(partial(self._control, call, arguments))

    async def resume(self, version: int) -> None:
        """Sample again, after a sender has sent this version."""
        await self._there(partial(self._resume, version))

    async def sleep(self) -> None:
        """Give the GPU's memory away, weights and caches: requests wait until `wake` and a push. Without a GPU, or
        without `colocate`, the memory stays, and requests wait all the same.
        """
        await self._there(self._sleep)

    async def wake(self) -> None:
        """Take back the memory for weights, which must be pushed; that for the key-value cache comes after the push, so
        that whoever sends them has had its room until then.
        """
        await self._there(self._wake)

    async def close(self) -> None:
        """End vLLM's processes; requests in hand are refused. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            await asyncio.wrap_future(self._submit(self._close))
            self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)

    # --- in the engine's thread --------------------------------------------------------------------------------

    async def _there(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if self._closed:
            raise EngineError("the engine is closed")
        return await asyncio.wrap_future(self._submit(partial(self._call, work)))

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    async def _call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """A call from outside: to its end, or until vLLM dies, of which not all of its own calls are told."""
        task = asyncio.ensure_future(work())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_S))[0]:
                if not self._closed and self._llm.errored:
                    raise EngineUnusableError(_DEAD)
        finally:
            task.cancel()
        try:
            return task.result()
        except Exception as error:
            if not self._closed and self._llm.errored:
                raise EngineUnusableError(_DEAD) from error
            raise

    async def _generate(self, prompt_ids: list[int], images: list[bytes], sampling: Sampling) -> Generation:
        reply = Reply()
        try:
            prompt = await asyncio.to_thread(self._prompts.read, prompt_ids, images)
            if sampling.max_new_tokens > 0:
                while not await self._gate.run(partial(self._sample, prompt, sampling, reply)):
                    pass
        except EngineError:
            raise
        except ValueError as error:
            raise _failure("the prompt cannot be read", error) from error
        except Exception as error:  # whatever vLLM raises belongs to this request
            raise _failure("sampling failed", error) from error
        return reply.generation(self._version)

    async def _sample(self, prompt: Prompt, sampling: Sampling, reply: Reply) -> None:
        """Extend a reply under the weights of the moment until it ends or the gate closes."""
        if self._unusable:
            raise EngineError(self._unusable)
        version, before = self._version, list(reply.token_ids)
        parameters = _parameters(sampling, sampling.max_new_tokens - len(before), self._never)
        for attempt in range(2):
            reason = await self._run(prompt, before, parameters, reply, version)
            # vLLM's two halves can disagree about which pictures are cached; it says so, and the next attempt sends them
            if reason != "error" or len(reply.token_ids) > len(before) or attempt:
                break
        if reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a request early: {reason}")
        reply.stopped = reason == "stop"

    async def _run(
        self, prompt: Prompt, before: list[int], parameters: Any, reply: Reply, version: int
    ) -> str | None:
        """One request to vLLM, to its end. Cancelled or failed, it is aborted. Returns why it ended."""
        admission = asyncio.ensure_future(
            self._llm.add_request(uuid4().hex, prompt.request(before), parameters)
        )
        try:
            # vLLM's caches would be left out of step by a request that goes away while it is admitted
            queue = await asyncio.shield(admission)
        except asyncio.CancelledError:
            await asyncio.wait({admission})
            if admission.exception() is None:
                await self._llm.abort(admission.result().request_id, internal=True)
            raise
        try:
            checked = False
            while True:
                output = queue.get_nowait() or await queue.get()
                if not checked and output.outputs[0].finish_reason != "error":
                    prompt.check(output.prompt_token_ids, before)
                    checked = True
                reply.add(output, version)
                if output.finished:
                    return str(output.outputs[0].finish_reason)
        except BaseException:
            await self._llm.abort(queue.request_id, internal=True)
            raise

    async def _push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        async with self._changing:
            await self._pause()
            try:
                await asyncio.to_thread(self._sender.send, weights)
            except Exception as error:
                failure = _failure("sending weights failed; push again before sampling", error)
                self._unusable = str(failure)
                await self._open()
                raise failure from error
            await self._resume(version)

    async def _pause(self) -> None:
        await self._gate.close()
        # of what is left nobody waits for a reply; returns when vLLM is idle
        await self._llm.pause_generation(mode="abort", clear_cache=True)

    async def _control(self, call: str, arguments: Mapping[str, Any]) -> None:
        if call not in CONTROLS:
            raise ValueError(f"{call} is no call of a weight sender")
        await self._llm.collective_rpc(call, kwargs=dict(arguments))

    async def _resume(self, version: int) -> None:
        self._version = version
        self._unusable = ""
        await self._open()

    async def _open(self) -> None:
        if _CACHE in self._away:
            await self._llm.wake_up([_CACHE])
            self._away.discard(_CACHE)
        # features of pictures are of the old weights too; all three, or vLLM's halves disagree about what is there
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()
        self._gate.open()

    async def _sleep(self) -> None:
        async with self._changing:
            await self._pause()
            if self._sleeps and not self._away:
                await self._llm.sleep(level=2)
                self._away = {_WEIGHTS, _CACHE}

    async def _wake(self) -> None:
        async with self._changing:
            if _WEIGHTS in self._away:
                await self._llm.wake_up([_WEIGHTS])
                self._away.discard(_WEIGHTS)

    async def _close(self) -> None:
        self._unusable = "the engine was closed"
        await self._gate.close()
        self._gate.open()
        if self._calls:
            await asyncio.wait(self._calls)
        await asyncio.to_thread(self._sender.close)
        self._llm.shutdown()
        del self._llm  # it shuts down once more when it is collected, for which it is too late as Python ends

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _start(arguments: Mapping[str, Any]) -> AsyncLLM:
    """Blocks the engine's own thread, which has nothing else to do yet."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    if arguments["load_format"] == "dummy":
        await llm.collective_rpc("restore_input_norm")
    return llm


def _parameters(sampling: Sampling, left: int, never: Mapping[int, float]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=left,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # what ends a reply is the caller's to say
        logit_bias=dict(never),  # they would pretend to be pictures
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _failure(what: str, cause: Exception) -> EngineError:
    return EngineError(f"{what}: {type(cause).__name__}: {cause}")
