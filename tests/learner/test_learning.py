import asyncio
import math
import random

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from arpo.replay import ReplayBuffer, RowStore
from arpo.rollout.engines import Sampling
from arpo.rollout.engines.hf import HFEngine
from policy_kit import Pictures, conversation, fresh_policy

INSTRUCTIONS = {"Press the blue button.": "Press the button.", "Say that it is done.": "It is done."}


async def rollouts(engine, policy, pictures, demonstration, wanted, number):
    """A group of eight one-turn episodes; success is saying exactly what is wanted."""
    start = demonstration.loss_mask.index(True)
    prompt = demonstration.token_ids[:start]
    data = [pictures[image.sha256] for image in demonstration.images]
    stop = policy.encoder.stop_token_ids
    samplings = [Sampling(max_new_tokens=10, stop_token_ids=stop, seed=100 * number + n) for n in range(8)]
    generations = await asyncio.gather(*(engine.generate(prompt, data, s) for s in samplings))
    group = []
    for n, generation in enumerate(generations):
        ids = [*prompt, *generation.token_ids, *policy.encoder.close_turn(generation.stopped)]
        after = len(ids) - start - len(generation.token_ids)
        succeeded = generation.stopped and policy.encoder.decode(generation.token_ids) == wanted
        changes = {
            "episode_id": f"{number}/{n}",
            "token_ids": ids,
            "loss_mask": [False] * start + [True] * len(generation.token_ids) + [False] * after,
            "logprobs": [0.0] * start + generation.logprobs + [0.0] * after,
            "score": float(succeeded),
        }
        group.append(demonstration.model_copy(update=changes))
    return group


def test_engine_replay_and_learner_together_raise_the_probability_of_success(tmp_path):
    policy, pictures = fresh_policy(), Pictures()
    shown = [
        conversation(
            policy, pictures, [reply], instruction=instruction, task_id=instruction, score=1.0, seed=n
        )
        for n, (instruction, reply) in enumerate(INSTRUCTIONS.items())
    ]
    section = LearnerSection(lr=5e-4, max_row_tokens=4096)
    engine = HFEngine(policy, max_batch=8)  # before the learner takes the model over
    learner = Learner(policy, section, ReplaySection(), temperature=1.0, seed=0)

    def success():
        return [math.exp(value) for value in learner.sequence_logprobs(shown, pictures.__getitem__)]

    while min(success()) < 0.15:
        learner.imitate_step(shown, pictures.__getitem__, 1e-3)
    before = success()
    assert max(before) < 0.7
    replay, gaps = ReplayBuffer(ReplaySection(), RowStore(tmp_path)), []

    async def train():
        await engine.push(learner.weights(), 0)
        for step in range(8):
            groups = []
            for number, (demonstration, wanted) in enumerate(zip(shown, INSTRUCTIONS.values(), strict=True)):
                fresh = await rollouts(engine, policy, pictures, demonstration, wanted, 10 * step + number)
                groups.append(replay.close_group(fresh, random.Random(step)))
            metrics = learner.step(groups, pictures.__getitem__)
            gaps.append(metrics["learner/engine_logprob_gap_max"])
            await engine.push(learner.weights(), step + 1)
        await engine.close()

    asyncio.run(train())
    after = success()
    assert all(b > a + 0.1 for a, b in zip(before, after, strict=True)), (before, after)
    # what the engine said it sampled with is what the learner computes, push after push
    assert max(gaps) < 1e-4
    assert replay.metrics(8)["tasks"] == 2
