"""What only the `vllm` engine does. Run by `test_vllm_engine.py`, in an environment that has vLLM."""

import asyncio
import time

import pytest
from conformance import TOLERANCE, Reference, disturbed, make_prompt, make_prompts, sampling, worst
from vllm_kit import ROW_TOKENS, vllm_engine

from arpo.rollout.engines import EngineError, Generation
from policy_kit import fresh_policy


async def together(engine, prompts):
    return await asyncio.gather(*(engine.generate(*p, sampling(n)) for n, p in enumerate(prompts)))


@pytest.fixture(scope="module")
def policy():
    return fresh_policy("qwen3_vl", freeze_vision=False)


@pytest.fixture(scope="module")
def reference(policy):
    return Reference(policy, "qwen3_vl").fill(disturbed(policy, 1))


@pytest.fixture(scope="module")
def blank(policy, tmp_path_factory):
    """Made from a checkpoint's blueprint, which has no weights; they come by reload."""
    folder = tmp_path_factory.mktemp("blueprint")
    policy.save_blueprint(folder)
    with vllm_engine(folder, weights=False, weight_transfer="reload") as engine:
        yield engine


def test_an_engine_without_weights_refuses_until_some_are_pushed(blank, policy, reference):
    prompts = make_prompts(policy)

    async def work():
        with pytest.raises(EngineError, match="no weights"):
            await blank.generate(*prompts[0], sampling())
        began = time.monotonic()
        await blank.push(disturbed(policy, 1), 5)
        print(f"push by reload: {time.monotonic() - began:.3f} s")
        return await together(blank, prompts)

    generations = asyncio.run(work())
    assert {g.policy_version for g in generations} == {5}
    assert max(worst(reference, p, g) for p, g in zip(prompts, generations, strict=True)) < TOLERANCE


def test_a_prompt_that_is_too_long_fails_alone_and_its_pictures_work_afterwards(blank, policy, reference):
    """vLLM has then cached a picture in one of its halves only."""
    ids, data = make_prompt(policy, 9, 1)

    async def work():
        with pytest.raises(EngineError):
            await blank.generate(
                ids * (1 + ROW_TOKENS // len(ids)), data * (1 + ROW_TOKENS // len(ids)), sampling()
            )
        with pytest.raises(EngineError):
            await blank.generate([ids[0]] * ROW_TOKENS + ids, data, sampling())
        return await blank.generate(ids, data, sampling())

    assert worst(reference, (ids, data), asyncio.run(work())) < TOLERANCE


def test_requests_wait_while_the_engine_sleeps(blank, policy, reference):
    prompt = make_prompt(policy, 0, 1)

    async def work():
        await blank.sleep()
        waiting = asyncio.create_task(blank.generate(*prompt, sampling()))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        await blank.wake()
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done, "it has no weights before a push"
        await blank.push(disturbed(policy, 1), blank.policy_version + 1)
        return await waiting

    generation = asyncio.run(work())
    assert generation.queued_s > 0.9
    assert generation.policy_version == blank.policy_version
    assert worst(reference, prompt, generation) < TOLERANCE


def test_a_transfer_that_fails_refuses_requests_until_one_succeeds(blank, policy, reference):
    prompt = make_prompt(policy, 0, 1)

    class Broken(dict):
        def items(self):
            raise OSError("the learner is gone")

    async def work():
        waiting = asyncio.create_task(blank.generate(*prompt, sampling(max_new_tokens=400)))
        await asyncio.sleep(0.2)
        with pytest.raises(EngineError, match="push again"):
            await blank.push(Broken(disturbed(policy, 1)), 6)
        with pytest.raises(EngineError, match="push again"):
            await blank.generate(*prompt, sampling())
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(outcome, EngineError)
        await blank.push(disturbed(policy, 1), 6)
        return await blank.generate(*prompt, sampling())

    generation = asyncio.run(work())
    assert isinstance(generation, Generation)
    assert generation.policy_version == 6
    assert worst(reference, prompt, generation) < TOLERANCE


def test_two_processes_share_a_model_and_take_weights_over_gloo(policy_2, tmp_path):
    prompts = make_prompts(policy_2)
    reference = Reference(policy_2, "qwen2_vl").fill(disturbed(policy_2, 2))
    policy_2.save_blueprint(tmp_path)
    with vllm_engine(tmp_path, weights=False, tensor_parallel=2) as engine:

        async def work():
            await engine.push(disturbed(policy_2, 2), 1)
            return await together(engine, prompts)

        generations = asyncio.run(work())
    assert max(worst(reference, p, g) for p, g in zip(prompts, generations, strict=True)) < TOLERANCE


@pytest.fixture
def policy_2():
    return fresh_policy("qwen2_vl", freeze_vision=False)
