"""What every engine must do. Files that name an engine import these tests and say what `subject` is.

Log-probs are held against a plain fp32 forward pass of transformers, one reply at a time, which shares nothing with
the engines but the picture processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from arpo.policy.load import Policy
from arpo.policy.tiny import Architecture
from arpo.rollout.engines import Engine, EngineError, Generation, Sampling
from policy_kit import fresh_policy, picture, tiny_folder

MAX_BATCH, MAX_IMAGES = 8, 4
TOLERANCE = 1e-4
Weights = Mapping[str, torch.Tensor]
Prompt = tuple[list[int], list[bytes]]


@dataclass
class Subject:
    """An engine with the weights of `policy`, version 0. splits: a push goes between the tokens of a reply."""

    engine: Engine
    policy: Policy
    splits: bool

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(work())

    def together(self, requests: Sequence[tuple[Prompt, Sampling]]) -> list[Generation]:
        async def work():
            return await asyncio.gather(*(self.engine.generate(ids, data, s) for (ids, data), s in requests))

        return self.run(work)


class Reference:
    """What transformers computes with some weights."""

    def __init__(self, policy: Policy, architecture: Architecture = "qwen2_5_vl") -> None:
        self._policy = policy
        self._model = AutoModelForImageTextToText.from_pretrained(
            tiny_folder(architecture=architecture), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._never = [policy.encoder.image_token_id, policy.encoder.video_token_id]

    def fill(self, weights: Weights) -> Reference:
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])
        return self

    @torch.no_grad()
    def logits(self, prompt: Prompt, sampled: Sequence[int]) -> torch.Tensor:
        """[sampled, vocabulary]: of what each sampled token was drawn from, before temperature."""
        ids, data = prompt
        tokens = torch.tensor([[*ids, *sampled]])
        images = [self._policy.images.encode(d) for d in data]
        vision = {}
        if images:
            vision["pixel_values"] = torch.cat([i.pixel_values for i in images])
            vision["image_grid_thw"] = torch.tensor([i.grid for i in images])
            vision["mm_token_type_ids"] = (tokens == self._policy.encoder.image_token_id).int()
        logits = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **vision).logits[0]
        logits[:, self._never] = -torch.inf
        return logits[len(ids) - 1 : -1]

    def logprobs(self, prompt: Prompt, sampled: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        log_p = torch.log_softmax(self.logits(prompt, sampled) / temperature, dim=-1)
        return log_p.gather(-1, torch.tensor(sampled)[:, None])[:, 0]


def make_prompt(policy: Policy, number: int, pictures: int) -> Prompt:
    """A prompt whose length differs with `number`; most pictures are resized before the model sees them."""
    ids = policy.encoder.text_message("user", "Press the blue button. " * (1 + number))
    data = []
    for index in range(pictures):
        width, height = 140 + 31 * number, 84 + 13 * index
        data.append(picture(100 * number + index, width, height))
        ids += policy.encoder.image_message(width, height)[0]
    return ids + policy.encoder.generation_prompt(), data


def make_prompts(policy: Policy) -> list[Prompt]:
    return [make_prompt(policy, number, pictures) for number, pictures in enumerate((1, 3, 0, 2))]


def sampling(number: int = 0, **options: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0, "max_new_tokens": 12, "seed": 40 + number} | options))


def disturbed(policy: Policy, seed: int) -> dict[str, torch.Tensor]:
    """Other weights: every parameter differs, those of the vision tower too."""
    stream = torch.Generator().manual_seed(seed)
    return {
        name: parameter.detach() + 0.05 * torch.randn(parameter.shape, generator=stream)
        for name, parameter in policy.model.named_parameters()
    }


def indifferent(policy: Policy) -> dict[str, torch.Tensor]:
    """Weights under which every token is as likely as any other."""
    return {name: torch.zeros_like(parameter) for name, parameter in policy.model.named_parameters()}


def worst(reference: Reference, prompt: Prompt, generation: Generation, temperature: float = 1.0) -> float:
    """The largest difference of a log-prob from the reference."""
    expected = reference.logprobs(prompt, generation.token_ids, temperature)
    return float((torch.tensor(generation.logprobs) - expected).abs().max())


@pytest.fixture(scope="module")
def policy() -> Policy:
    return fresh_policy(freeze_vision=False)


@pytest.fixture(scope="module")
def reference(policy: Policy) -> Reference:
    return Reference(policy)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_an_independent_forward_pass(subject, reference, temperature):
    prompts = make_prompts(subject.policy)
    generations = subject.together([(p, sampling(n, temperature=temperature)) for n, p in enumerate(prompts)])
    assert [len(g.token_ids) for g in generations] == [12] * 4
    differences = [worst(reference, p, g, temperature) for p, g in zip(prompts, generations, strict=True)]
    print(f"largest log-prob difference at temperature {temperature}: {max(differences):.2g}")
    assert max(differences) < TOLERANCE


def test_nucleus_sampling_reports_the_log_probs_of_the_nucleus(subject, reference):
    prompt = make_prompt(subject.policy, 0, 1)
    requests = [(prompt, sampling(n, top_p=0.3, temperature=0.7)) for n in range(4)]
    for generation in subject.together(requests):
        log_p = torch.log_softmax(reference.logits(prompt, generation.token_ids) / 0.7, dim=-1)
        for row, token, logprob in zip(log_p, generation.token_ids, generation.logprobs, strict=True):
            ordered = row.exp().sort(descending=True).values
            size = int((ordered.cumsum(0) < 0.3).sum()) + 1
            assert row[token].exp() >= ordered[size - 1] - 1e-6
            assert logprob == pytest.approx(float(row[token] - ordered[:size].sum().log()), abs=1e-3)


def test_greedy_takes_the_likeliest_token_and_reports_untempered_log_probs(subject, reference):
    prompts = make_prompts(subject.policy)
    # beside one that is not greedy, as they share a batch
    requests = [(p, sampling(n, temperature=0.0, top_p=0.5)) for n, p in enumerate(prompts)]
    *generations, _ = subject.together([*requests, (prompts[0], sampling(temperature=0.5))])
    for prompt, generation in zip(prompts, generations, strict=True):
        logits = reference.logits(prompt, generation.token_ids)
        assert generation.token_ids == logits.argmax(-1).tolist()
        assert worst(reference, prompt, generation) < TOLERANCE
    again = subject.together(requests)
    assert [g.token_ids for g in again] == [g.token_ids for g in generations]


def test_a_stop_token_ends_a_reply_and_is_part_of_it(subject):
    prompt = make_prompt(subject.policy, 0, 1)
    (free,) = subject.together([(prompt, sampling(temperature=0.0))])
    stop = free.token_ids[5]
    until = free.token_ids.index(stop) + 1
    stopped, neighbour = subject.together(
        [(prompt, sampling(temperature=0.0, stop_token_ids=(stop,))), (prompt, sampling(temperature=0.0))]
    )
    assert stopped.token_ids == free.token_ids[:until]
    assert len(stopped.logprobs) == until
    assert stopped.stopped
    assert not free.stopped
    assert neighbour.token_ids == free.token_ids


def test_a_token_that_ends_a_turn_ends_a_reply_only_when_asked_to(subject):
    prompt = make_prompt(subject.policy, 0, 0)
    (end,) = subject.policy.encoder.stop_token_ids
    subject.run(lambda: subject.engine.push(indifferent(subject.policy), 1))
    free = subject.together([(prompt, sampling(n, max_new_tokens=300)) for n in range(8)])
    assert any(end in g.token_ids[:-1] for g in free)
    assert [len(g.token_ids) for g in free] == [300] * 8
    limits = {"max_new_tokens": 300, "stop_token_ids": (end,)}
    for generation in subject.together([(prompt, sampling(n, **limits)) for n in range(8)]):
        assert generation.stopped == (generation.token_ids[-1] == end)
        assert end not in generation.token_ids[:-1]


def test_replies_with_different_limits_share_a_batch(subject):
    prompt = make_prompt(subject.policy, 0, 1)
    generations = subject.together(
        [(prompt, sampling(temperature=0.0, max_new_tokens=n)) for n in (1, 7, 3, 0)]
    )
    assert [len(g.token_ids) for g in generations] == [1, 7, 3, 0]
    assert generations[2].token_ids == generations[1].token_ids[:3]
    assert not any(g.stopped for g in generations)


def test_ids_that_pretend_to_be_pictures_are_never_sampled(subject):
    suppressed = {subject.policy.encoder.image_token_id, subject.policy.encoder.video_token_id}
    prompt = make_prompt(subject.policy, 0, 0)
    subject.run(lambda: subject.engine.push(indifferent(subject.policy), 1))
    generations = subject.together([(prompt, sampling(n, max_new_tokens=300)) for n in range(8)])
    seen = {token for g in generations for token in g.token_ids}
    assert len(seen) > len(subject.policy.tokenizer) * 0.9
    assert not seen & suppressed


def test_many_replies_at_once_with_shared_pictures_are_all_right(subject, reference):
    prompts = [p for p in make_prompts(subject.policy) for _ in range(MAX_BATCH)]
    generations = subject.together([(p, sampling(n)) for n, p in enumerate(prompts)])
    assert len(generations) == 4 * MAX_BATCH
    assert max(worst(reference, p, g) for p, g in zip(prompts, generations, strict=True)) < TOLERANCE
    assert all(g.queued_s >= 0 for g in generations)
    assert all(g.policy_version == 0 and not g.pushes for g in generations)


def test_an_episode_that_grows_step_by_step_is_right_at_every_step(subject, reference):
    """Caches of prefixes and of pictures are at work here, where an engine has them."""
    encoder = subject.policy.encoder
    ids, data = encoder.text_message("user", "Press the blue button."), []
    for step in range(MAX_IMAGES):
        data.append(picture(step, 150, 97))
        ids = [*ids, *encoder.image_message(150, 97)[0], *encoder.generation_prompt()]
        (generation,) = subject.together([((ids, list(data)), sampling(step))])
        assert worst(reference, (ids, data), generation) < TOLERANCE
        ids = [*ids, *generation.token_ids, *encoder.close_turn(generation.stopped)]


def test_pushed_weights_are_those_that_sample_and_carry_their_version(subject, reference):
    prompt, greedy = make_prompt(subject.policy, 1, 2), sampling(temperature=0.0)
    new = disturbed(subject.policy, 1)

    async def work():
        before = await subject.engine.generate(*prompt, greedy)
        await subject.engine.push(new, 7)
        after = await subject.engine.generate(*prompt, greedy)
        for tensor in new.values():  # what the engine was given is copied: later changes of it are not seen
            tensor.mul_(2)
        again = await subject.engine.generate(*prompt, greedy)
        return before, after, again, subject.engine.policy_version

    before, after, again, version = subject.run(work)
    assert (before.policy_version, after.policy_version, version) == (0, 7, 7)
    assert after.token_ids == again.token_ids
    fresh = Reference(subject.policy).fill(disturbed(subject.policy, 1))
    assert worst(reference, prompt, before) < TOLERANCE
    assert worst(fresh, prompt, after) < TOLERANCE
    assert worst(reference, prompt, after) > 0.1


def test_pushes_amid_replies_fail_none_and_every_token_is_of_the_version_it_names(subject, reference):
    weights = {version: disturbed(subject.policy, version) for version in (1, 2, 3)}
    of = {v: Reference(subject.policy).fill(w) for v, w in weights.items()} | {0: reference}
    prompts = [p for p in make_prompts(subject.policy) for _ in range(3)]

    async def work():
        # more than fit into a batch, so that some wait and some run when weights come
        replies = [
            asyncio.create_task(subject.engine.generate(*p, sampling(n, max_new_tokens=120)))
            for n, p in enumerate(prompts)
        ]
        for version, new in weights.items():
            await asyncio.sleep(0.35)
            await subject.engine.push(new, version)
        late = await subject.engine.generate(*prompts[0], sampling())
        return await asyncio.gather(*replies), late

    generations, late = subject.run(work)
    assert (late.policy_version, late.pushes) == (3, ())
    assert [len(g.token_ids) for g in generations] == [120] * len(prompts)
    for prompt, generation in zip(prompts, generations, strict=True):
        starts = [(0, generation.policy_version), *generation.pushes, (120, -1)]
        assert starts == sorted(starts, key=lambda start: start[0])
        for (start, version), (end, _) in pairwise(starts):
            expected = of[version].logprobs(prompt, generation.token_ids)[start:end]
            difference = (torch.tensor(generation.logprobs[start:end]) - expected).abs().max()
            assert difference < TOLERANCE, (starts, version)
    mixed = sum(bool(g.pushes) for g in generations)
    print(f"{mixed} of {len(generations)} replies hold tokens of several versions")
    assert (mixed > 0) == subject.splits


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(subject, reference):
    prompt = make_prompt(subject.policy, 0, 1)
    weights = disturbed(subject.policy, 1)
    name = next(iter(weights))

    async def work():
        missing = {k: v for k, v in weights.items() if k != name}
        for wrong in (missing, weights | {"extra": weights[name]}, weights | {name: weights[name][:1]}):
            with pytest.raises(EngineError, match="do not fit"):
                await subject.engine.push(wrong, 9)
        return await subject.engine.generate(*prompt, sampling())

    generation = subject.run(work)
    assert generation.policy_version == 0
    assert worst(reference, prompt, generation) < TOLERANCE


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ids, data: (ids, [b"no picture"]),
        lambda ids, data: (ids, [data[0][:300]]),
        lambda ids, data: (ids, []),
        lambda ids, data: (ids, [picture(1, 280, 84)]),
        lambda ids, data: (ids, [*data, *data]),
        lambda ids, data: ([], []),
    ],
    ids=["unreadable", "cut off", "missing", "of another size", "one too many", "empty prompt"],
)
def test_a_prompt_that_cannot_be_read_fails_alone(subject, spoil):
    ids, data = make_prompt(subject.policy, 0, 1)

    async def work():
        return await asyncio.gather(
            subject.engine.generate(*spoil(ids, data), sampling()),
            subject.engine.generate(ids, data, sampling()),
            return_exceptions=True,
        )

    bad, good = subject.run(work)
    assert isinstance(bad, EngineError)
    assert len(good.token_ids) == 12


def test_cancelled_requests_leave_the_others_alone(subject, reference):
    prompts = [p for p in make_prompts(subject.policy) for _ in range(4)]

    async def work():
        requests = [
            asyncio.create_task(subject.engine.generate(*p, sampling(n, max_new_tokens=60)))
            for n, p in enumerate(prompts)
        ]
        for number, request in enumerate(requests):
            if number % 2:
                # at every stage of a request, from before it is known to the engine
                await asyncio.sleep(0.02 * (number // 2))
                request.cancel()
        return await asyncio.gather(*requests, return_exceptions=True)

    outcomes = subject.run(work)
    assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[1::2])
    for prompt, generation in zip(prompts[::2], outcomes[::2], strict=True):
        assert worst(reference, prompt, generation) < TOLERANCE
    assert len(subject.together([(prompts[0], sampling())])[0].token_ids) == 12


def test_a_closed_engine_refuses_and_closing_twice_is_harmless(subject):
    """The last one here: engines that are dear to start are shared by the tests before it."""
    prompt = make_prompt(subject.policy, 0, 1)

    async def work():
        in_hand = [
            asyncio.create_task(subject.engine.generate(*prompt, sampling(n, max_new_tokens=200)))
            for n in range(3)
        ]
        await asyncio.sleep(0.05)
        await asyncio.gather(subject.engine.close(), subject.engine.close())
        with pytest.raises(EngineError, match="closed"):
            await subject.engine.generate(*prompt, sampling())
        with pytest.raises(EngineError, match="closed"):
            await subject.engine.push(disturbed(subject.policy, 1), 1)
        return await asyncio.gather(*in_hand, return_exceptions=True)

    for outcome in subject.run(work):
        assert isinstance(outcome, Generation | EngineError)
