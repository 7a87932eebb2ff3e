"""Parts of the vllm engine that need no vLLM."""

import asyncio
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from arpo.config.sections import VllmSection
from arpo.rollout.engines import EngineError
from arpo.rollout.engines.vllm.gate import Gate
from arpo.rollout.engines.vllm.leader import LEADER
from arpo.rollout.engines.vllm.prompts import PromptReader
from arpo.rollout.engines.vllm.weights import Manifest, choose_method, shapes_of
from policy_kit import MAX_PIXELS, MIN_PIXELS, fresh_policy, picture, tiny_folder


@pytest.fixture(scope="module")
def policy():
    return fresh_policy()


@pytest.fixture(scope="module")
def reader(policy):
    return PromptReader(
        image_token_id=policy.encoder.image_token_id,
        factor=policy.processor.patch_size * policy.processor.merge_size,
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
    )


@pytest.mark.parametrize("size", [(140, 84), (151, 97), (20, 20), (640, 400), (1000, 90)])
def test_pictures_get_the_pixels_of_the_policys_processor(policy, reader, size):
    data = picture(3, *size)
    ids, tokens = policy.encoder.image_message(*size)
    prompt = reader.read([*ids, *ids], [data, data])
    pad = policy.encoder.image_token_id
    assert prompt.collapsed.count(pad) == 2
    assert prompt.token_ids.count(pad) == 2 * tokens
    assert [t for t in prompt.collapsed if t != pad] == [t for t in prompt.token_ids if t != pad]
    buffer = io.BytesIO()
    prompt.pictures[0].image.save(buffer, "PNG")
    ours, theirs = policy.images.decode(buffer.getvalue()), policy.images.decode(data)
    assert ours.grid == theirs.grid
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_pictures_without_anything_between_them_stay_apart(policy, reader):
    pad, tokens = policy.encoder.image_token_id, policy.encoder.image_tokens(140, 84)
    prompt = reader.read([1, *[pad] * (2 * tokens), 2], [picture(1), picture(2)])
    assert prompt.collapsed == [1, pad, pad, 2]
    assert prompt.request([7])["prompt_token_ids"] == [1, pad, pad, 2, 7]


@pytest.mark.parametrize("number", [-1, 1])
def test_a_prompt_with_another_number_of_image_tokens_is_refused(policy, reader, number):
    pad, tokens = policy.encoder.image_token_id, policy.encoder.image_tokens(140, 84)
    with pytest.raises(ValueError, match="image tokens"):
        reader.read([1, *[pad] * (tokens + number), 2], [picture(1)])


def test_another_prompt_than_ours_is_noticed(reader):
    prompt = reader.read([1, 2, 3], [])
    prompt.check([1, 2, 3, 4], [4])
    for wrong in ([1, 2, 3], [1, 2, 3, 5], None):
        with pytest.raises(ValueError, match="not the learner's"):
            prompt.check(wrong, [4])


def test_a_manifest_knows_what_a_policy_has_and_nothing_else(policy):
    manifest = Manifest(str(tiny_folder()))
    weights = dict(policy.model.named_parameters())
    manifest.check(shapes_of(weights))
    name = next(iter(weights))
    for wrong in ({}, weights | {"extra": weights[name]}, weights | {name: weights[name][:1]}):
        with pytest.raises(EngineError, match="do not fit"):
            manifest.check(shapes_of(wrong))


@pytest.mark.parametrize(
    ("gpu", "options", "method"),
    [
        (True, {}, "nccl"),
        (True, {"colocate": True}, "ipc"),
        (True, {"colocate": True, "tensor_parallel": 2}, "reload"),
        (False, {}, "gloo"),
        (False, {"colocate": True}, "gloo"),
        (True, {"colocate": True, "weight_transfer": "reload"}, "reload"),
    ],
)
def test_the_way_of_weights_follows_from_where_the_engine_is(gpu, options, method):
    assert choose_method(VllmSection(**options), gpu=gpu) == method


def test_a_gate_cuts_short_what_runs_and_lets_it_go_on_when_open():
    log = []

    async def work(steps):
        for _ in range(steps):
            log.append("step")
            await asyncio.sleep(0.01)

    async def run():
        gate = Gate()
        short = asyncio.create_task(gate.run(lambda: work(1)))
        long = asyncio.create_task(gate.run(lambda: work(1000)))
        assert await short
        await gate.close()
        assert await long is False
        seen = len(log)
        again = asyncio.create_task(gate.run(lambda: work(2)))
        await asyncio.sleep(0.05)
        assert len(log) == seen
        gate.open()
        assert await again
        assert len(log) == seen + 2

    asyncio.run(run())


def test_a_gate_passes_errors_and_cancellation_on():
    ended = []

    async def fail():
        raise ValueError("bad")

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def run():
        gate = Gate()
        with pytest.raises(ValueError, match="bad"):
            await gate.run(fail)
        waiting = asyncio.create_task(gate.run(wait))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended
        await asyncio.wait_for(gate.close(), 1)

    asyncio.run(run())


def test_a_worker_ends_with_the_process_that_leads_it_and_takes_its_parent_along():
    """The leader is a stranger to both: the core between them does not notice that it is gone."""
    leader = subprocess.Popen(["sleep", "60"])
    program = (
        "import multiprocessing as m, time\n"
        "from arpo.rollout.engines.vllm.leader import end_with_leader\n"
        "def work():\n    end_with_leader(); print('up', flush=True); time.sleep(60)\n"
        "worker = m.get_context('fork').Process(target=work)\nworker.start(); worker.join(); time.sleep(60)"
    )
    core = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, LEADER: str(leader.pid)}, stdout=subprocess.PIPE
    )
    try:
        assert core.stdout.readline() == b"up\n"
        assert core.poll() is None
        leader.kill()
        leader.wait()
        assert core.wait(10) == -signal.SIGKILL
        assert core.stdout.read() == b"", "the worker's end of the pipe is closed too"
    finally:
        leader.kill()
        core.kill()
