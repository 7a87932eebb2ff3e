"""What only the `hf` engine does; what every engine must is in `conformance.py`."""

import asyncio
import hashlib
from contextlib import asynccontextmanager

import pytest
import torch

from arpo.policy.logprobs import TokenRow, packed_logprobs
from arpo.policy.lora import Lora
from arpo.rollout.engines import EngineError, Sampling
from arpo.rollout.engines.hf import HFEngine
from policy_kit import Pictures, fresh_policy, picture


@pytest.fixture(scope="module")
def policy():
    return fresh_policy(freeze_vision=False)


@asynccontextmanager
async def engine_of(policy, max_batch=8):
    engine = HFEngine(policy, max_batch)
    try:
        yield engine
    finally:
        await engine.close()


def prompt(policy, number, pictures):
    """A prompt whose length differs with `number`."""
    ids = policy.encoder.text_message("user", "Press the blue button. " * (1 + number))
    data = []
    for index in range(pictures):
        data.append(picture(100 * number + index, 140 + 28 * number, 84))
        ids += policy.encoder.image_message(140 + 28 * number, 84)[0]
    return ids + policy.encoder.generation_prompt(), data


def prompts(policy):
    return [prompt(policy, number, pictures) for number, pictures in enumerate((1, 3, 0, 2))]


def sampling(number=0, **options):
    defaults = {"temperature": 1.0, "max_new_tokens": 12, "seed": 40 + number}
    return Sampling(**(defaults | options))


def together(policy, requests):
    async def run():
        async with engine_of(policy) as engine:
            return await asyncio.gather(*(engine.generate(ids, data, s) for (ids, data), s in requests))

    return asyncio.run(run())


def one_by_one(policy, requests):
    async def run():
        async with engine_of(policy) as engine:
            return [await engine.generate(ids, data, s) for (ids, data), s in requests]

    return asyncio.run(run())


def test_a_seed_determines_what_is_sampled_whatever_else_is_in_the_batch(policy):
    requests = [(p, sampling(n, temperature=0.5 + n / 2)) for n, p in enumerate(prompts(policy))]
    batched = together(policy, requests)
    alone = one_by_one(policy, requests)
    assert [g.token_ids for g in batched] == [g.token_ids for g in alone]
    for a, b in zip(batched, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    others = together(policy, [(p, sampling(n + 50)) for n, p in enumerate(prompts(policy))])
    assert [g.token_ids for g in others] != [g.token_ids for g in batched]


def assert_log_probs_agree(policy, temperature):
    """The engine's log-probs of what it samples are those that the learner computes, to 1e-4."""
    requests = [(p, sampling(n, temperature=temperature)) for n, p in enumerate(prompts(policy))]
    generations = together(policy, requests)
    rows, pictures = [], Pictures()
    for ((ids, data), _), generation in zip(requests, generations, strict=True):
        wanted = range(len(ids), len(ids) + len(generation.token_ids))
        rows.append(TokenRow([*ids, *generation.token_ids], [pictures.keep(d) for d in data], wanted))
    with torch.no_grad():
        learner, _ = packed_logprobs(policy, rows, pictures.__getitem__, temperature=temperature)
    engine = torch.tensor([value for g in generations for value in g.logprobs])
    assert len(engine) == 4 * 12
    assert float((learner - engine).abs().max()) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_engine_log_probs_are_the_learners_to_1e_4(policy, temperature):
    assert_log_probs_agree(policy, temperature)


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_so_they_are_with_the_other_architectures(architecture):
    assert_log_probs_agree(fresh_policy(architecture), 1.0)


def test_so_they_are_with_adapters_which_the_engine_has_folded_in():
    policy = fresh_policy(lora=Lora(rank=4, alpha=8.0))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    assert_log_probs_agree(policy, 1.0)


def test_greedy_sampling_is_what_transformers_generates(policy):
    ids, data = prompt(policy, 1, 2)
    (generation,) = together(policy, [((ids, data), sampling(temperature=0.0))])
    images = [policy.images.encode(d) for d in data]
    tokens = torch.tensor([ids])
    expected = policy.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == policy.encoder.image_token_id).int(),
        pixel_values=torch.cat([i.pixel_values for i in images]),
        image_grid_thw=torch.tensor([i.grid for i in images]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=-1,
        suppress_tokens=[policy.encoder.image_token_id, policy.encoder.video_token_id],
    )
    assert generation.token_ids == expected[0, len(ids) :].tolist()


def test_a_push_fails_no_request_and_leaves_what_was_asked_before_to_the_old_weights(policy):
    ids, data = prompt(policy, 0, 1)

    async def run():
        async with engine_of(policy, max_batch=2) as engine:
            early = [asyncio.create_task(engine.generate(ids, data, sampling(n))) for n in range(5)]
            await asyncio.sleep(0)
            push = asyncio.create_task(engine.push(dict(policy.model.named_parameters()), 3))
            await asyncio.sleep(0)
            late = [asyncio.create_task(engine.generate(ids, data, sampling(n))) for n in range(2)]
            await push
            return [(await t).policy_version for t in early], [(await t).policy_version for t in late]

    assert asyncio.run(run()) == ([0] * 5, [3] * 2)


def test_a_failing_batch_raises_for_its_requests_and_the_engine_lives_on(policy):
    ids, data = prompt(policy, 0, 1)
    outside = len(policy.tokenizer) + 5

    async def run():
        async with engine_of(policy) as engine:
            outcomes = await asyncio.gather(
                engine.generate([*ids, outside], data, sampling()),
                engine.generate(ids, data, sampling()),
                return_exceptions=True,
            )
            return outcomes, await engine.generate(ids, data, sampling())

    outcomes, after = asyncio.run(run())
    assert all(isinstance(outcome, EngineError) for outcome in outcomes)
    assert len(after.token_ids) == 12


def test_a_cancelled_request_that_waits_is_never_computed(policy):
    ids, data = prompt(policy, 0, 1)
    unseen_ids, unseen = prompt(policy, 77, 1)

    async def run():
        async with engine_of(policy, max_batch=1) as engine:
            first = asyncio.create_task(engine.generate(ids, data, sampling(max_new_tokens=60)))
            await asyncio.sleep(0.02)
            waiting = asyncio.create_task(engine.generate(unseen_ids, unseen, sampling()))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return await engine.generate(ids, data, sampling()), await first

    after, first = asyncio.run(run())
    assert len(first.token_ids) == 60
    assert len(after.token_ids) == 12
    # engine and policy share the pictures they have preprocessed; this one was never asked for
    asked = []
    policy.images.get(hashlib.sha256(unseen[0]).hexdigest(), lambda sha256: asked.append(sha256) or unseen[0])
    assert asked


def test_a_closed_engine_refuses_and_closing_twice_is_harmless(policy):
    ids, data = prompt(policy, 0, 1)

    async def run():
        engine = HFEngine(policy, 1)
        in_hand = asyncio.create_task(engine.generate(ids, data, sampling(max_new_tokens=40)))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(engine.generate(ids, data, sampling()))
        await asyncio.sleep(0)
        await asyncio.gather(engine.close(), engine.close())
        with pytest.raises(EngineError, match="closed"):
            await engine.generate(ids, data, sampling())
        with pytest.raises(EngineError, match="closed"):
            await engine.push({}, 1)
        return await asyncio.gather(in_hand, waiting, return_exceptions=True)

    in_hand, waiting = asyncio.run(run())
    assert len(in_hand.token_ids) == 40
    assert isinstance(waiting, EngineError)


def test_the_engine_does_not_share_weights_with_the_policy():
    policy = fresh_policy()
    ids, data = prompt(policy, 0, 1)

    async def run():
        async with engine_of(policy) as engine:
            before = await engine.generate(ids, data, sampling())
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter.zero_()
            return before, await engine.generate(ids, data, sampling())

    before, after = asyncio.run(run())
    assert before == after
