"""Sampling with transformers in this process.

Invariant: one thread owns the engine's weights. Requests and weight pushes go through one queue in the order
in which they came, so a batch runs under one policy version from its first token to its last.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache

from arpo.policy.inputs import ModelRow, collate
from arpo.policy.load import Policy
from arpo.policy.logprobs import tempered_logits
from arpo.rollout.engines.base import EngineError, Generation, Sampling
from arpo.rollout.engines.sampling import Sampler

_GATHER_S = 0.003
"""How long the first request of a batch waits for company: desktops that step together ask together."""


@dataclass(frozen=True)
class _Request:
    prompt_ids: Sequence[int]
    images: Sequence[bytes]
    sampling: Sampling
    asked: float = field(default_factory=time.monotonic)
    reply: Future[Generation] = field(default_factory=Future)


@dataclass(frozen=True)
class _Push:
    weights: Mapping[str, torch.Tensor]
    version: int
    reply: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Stop:
    pass


class HFEngine:
    """An `Engine` with weights of its own, copied from `policy`.

    Concurrent requests are sampled together, up to `max_batch`. A batch that fails raises EngineError for its
    requests and leaves the engine working; a prompt that cannot be read fails alone. A request that is
    cancelled before its batch starts is never computed.
    """

    def __init__(self, policy: Policy, max_batch: int, *, policy_version: int = 0) -> None:
        self._policy = policy.copy()
        self._policy.model.eval().requires_grad_(requires_grad=False)
        self._parameters = dict(self._policy.model.named_parameters())
        self._max_batch = max_batch
        self._version = policy_version
        self._queue: queue.SimpleQueue[_Request | _Push | _Stop] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hf-engine", daemon=True)
        self._thread.start()

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], images: Sequence[bytes], sampling: Sampling
    ) -> Generation:
        """Continue a prompt; see `Engine.generate`. Raises EngineError."""
        request = _Request(list(prompt_ids), list(images), sampling)
        self._submit(request)
        return await asyncio.wrap_future(request.reply)

    async def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Copy new weights in, after the batches that were asked for before.

        weights: all parameters by name. Raises EngineError, with the old weights kept, when names or shapes
        differ.
        """
        push = _Push(weights, version)
        self._submit(push)
        # shielded: weights that are half copied when the caller goes away must still become whole
        await asyncio.shield(asyncio.wrap_future(push.reply))

    async def close(self) -> None:
        """Finish the batch in hand, refuse what waits, release the thread. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._queue.put(_Stop())
        await asyncio.to_thread(self._thread.join)

    def _submit(self, item: _Request | _Push) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        self._queue.put(item)

    def _work(self) -> None:
        item = self._queue.get()
        while not isinstance(item, _Stop):
            if isinstance(item, _Push):
                self._apply(item)
                item = self._queue.get()
            else:
                batch, following = self._gather(item)
                self._run(batch)
                item = following or self._queue.get()

    def _gather(self, first: _Request) -> tuple[list[_Request], _Push | _Stop | None]:
        """`first` and the requests behind it, up to the batch limit or the next push."""
        batch, deadline = [first], time.monotonic() + _GATHER_S
        while len(batch) < self._max_batch:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(item, _Request):
                return batch, item
            batch.append(item)
        return batch, None

    def _apply(self, push: _Push) -> None:
        if not push.reply.set_running_or_notify_cancel():
            return
        wrong = {
            name
            for name in self._parameters.keys() | push.weights.keys()
            if name not in push.weights
            or name not in self._parameters
            or push.weights[name].shape != self._parameters[name].shape
        }
        if wrong:
            push.reply.set_exception(
                EngineError(
                    f"weights do not fit the engine's model: {len(wrong)} parameters, {min(wrong)} first"
                )
            )
            return
        try:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(push.weights[name])
        except Exception as error:  # a failing device must reach the caller, not end the thread
            push.reply.set_exception(_failure("copying weights failed; push again before sampling", error))
            return
        self._version = push.version
        push.reply.set_result(None)

    def _run(self, batch: Sequence[_Request]) -> None:
        """Sample a batch; every request in it gets its reply or an error."""
        rows: list[ModelRow] = []
        ready: list[_Request] = []
        for request in batch:
            if not request.reply.set_running_or_notify_cancel():
                continue
            if self._closed:
                request.reply.set_exception(EngineError("the engine was closed"))
                continue
            try:
                rows.append(self._row(request))
                ready.append(request)
            except Exception as error:  # one unreadable picture must not fail its neighbours
                request.reply.set_exception(_failure("the prompt cannot be read", error))
        if not ready:
            return
        began = time.monotonic()
        try:
            generations = self._sample(rows, [request.sampling for request in ready])
        except Exception as error:  # whatever the model raises belongs to these requests; the engine lives on
            for request in ready:
                request.reply.set_exception(_failure("sampling failed", error))
            return
        for request, generation in zip(ready, generations, strict=True):
            request.reply.set_result(replace(generation, queued_s=began - request.asked))

    def _row(self, request: _Request) -> ModelRow:
        row = ModelRow(request.prompt_ids, [self._policy.images.encode(data) for data in request.images])
        row.check(self._policy.encoder.image_token_id)
        return row

    @torch.inference_mode()
    def _sample(self, rows: Sequence[ModelRow], samplings: Sequence[Sampling]) -> list[Generation]:
        """Prefill B left-padded prompts, then extend them token by token over one key-value cache."""
        policy, size = self._policy, len(rows)
        inputs = collate(policy, rows)
        sampler = Sampler(samplings, policy.device)
        cache = DynamicCache(config=policy.model.config.get_text_config())
        longest = max(sampling.max_new_tokens for sampling in samplings)
        attention_mask = torch.nn.functional.pad(inputs.attention_mask, (0, longest), value=1)
        length = inputs.input_ids.shape[1]

        ids: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        stopped = [False] * size
        running = [sampling.max_new_tokens > 0 for sampling in samplings]
        input_ids, position_ids, vision = inputs.input_ids, inputs.position_ids, inputs.vision()
        for step in range(longest):
            outputs = policy.model.model(
                input_ids=input_ids,
                attention_mask=attention_mask[:, : length + step],
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                **vision,
            )
            hidden = outputs.last_hidden_state[:, -1]
            drawn, drawn_logprobs = sampler.draw(tempered_logits(policy, hidden, sampler.temperature))
            for row, (token, logprob) in enumerate(zip(drawn.tolist(), drawn_logprobs.tolist(), strict=True)):
                if not running[row]:
                    continue
                ids[row].append(token)
                logprobs[row].append(logprob)
                stopped[row] = token in samplings[row].stop_token_ids
                running[row] = not stopped[row] and len(ids[row]) < samplings[row].max_new_tokens
            if not any(running):
                break
            input_ids, vision = drawn[:, None], {}
            # a text token stands at the same place in time, height and width
            position_ids = (inputs.next_position + step)[None, :, None].expand(3, size, 1)
        return [
            Generation(
                token_ids=ids[row], logprobs=logprobs[row], policy_version=self._version, stopped=stopped[row]
            )
            for row in range(size)
        ]


def _failure(what: str, cause: Exception) -> EngineError:
    error = EngineError(f"{what}: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
