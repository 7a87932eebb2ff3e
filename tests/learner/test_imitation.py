import math

import pytest

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from policy_kit import Pictures, conversation, fresh_policy

PRESS = "Thought: Press the button.\nAction: click(start_box='(640,400)')"
DONE = "Thought: It is done.\nAction: finished()"


def learner_of(policy, temperature=1.0, max_row_tokens=10_000):
    section = LearnerSection(max_row_tokens=max_row_tokens)
    return Learner(policy, section, ReplaySection(), temperature=temperature, seed=0)


def demonstrations(policy, pictures):
    return [
        conversation(policy, pictures, [PRESS, DONE], instruction="Press the blue button.", seed=0),
        conversation(policy, pictures, [DONE], instruction="Say that it is done.", seed=1),
        conversation(policy, pictures, [DONE, PRESS], instruction="Say it, then press.", seed=2),
    ]


def test_the_loss_is_the_mean_negative_log_prob_of_the_sampled_tokens():
    policy, pictures = fresh_policy(), Pictures()
    shown = demonstrations(policy, pictures)
    learner = learner_of(policy, temperature=0.8)
    logprobs = learner.sequence_logprobs(shown, pictures.__getitem__)
    tokens = sum(sum(t.loss_mask) for t in shown)
    metrics = learner.imitate_step(shown, pictures.__getitem__, 1e-3)
    assert metrics["imitation/loss"] == pytest.approx(-sum(logprobs) / tokens, rel=1e-5)
    assert metrics["imitation/tokens"] == tokens


def test_sequence_log_probs_do_not_depend_on_the_batch():
    pictures = Pictures()
    shown = demonstrations(fresh_policy(), pictures)
    one, all_at_once = (
        learner_of(fresh_policy(), max_row_tokens=n).sequence_logprobs(shown, pictures.__getitem__)
        for n in (1, 10_000)
    )
    assert one == pytest.approx(all_at_once, abs=1e-3)


def test_the_log_probs_of_single_tokens_are_the_parts_of_a_sequences():
    policy, pictures = fresh_policy(), Pictures()
    shown = demonstrations(policy, pictures)
    learner = learner_of(policy, temperature=0.8)
    parts = learner.token_logprobs(shown, pictures.__getitem__)
    assert [len(part) for part in parts] == [sum(t.loss_mask) for t in shown]
    assert [sum(part) for part in parts] == pytest.approx(
        learner.sequence_logprobs(shown, pictures.__getitem__), rel=1e-6
    )


def test_fixed_demonstrations_are_learned_to_a_probability_of_a_half():
    policy, pictures = fresh_policy(), Pictures()
    shown = demonstrations(policy, pictures)
    learner = learner_of(policy)
    for _ in range(40):
        learner.imitate_step(shown, pictures.__getitem__, 2e-3)
    probabilities = [math.exp(v) for v in learner.sequence_logprobs(shown, pictures.__getitem__)]
    assert min(probabilities) > 0.5


def test_packing_does_not_change_an_imitation_step():
    pictures = Pictures()
    weights = []
    for tokens in (1, 10_000):
        policy = fresh_policy()
        learner = learner_of(policy, max_row_tokens=tokens)
        metrics = learner.imitate_step(demonstrations(policy, pictures), pictures.__getitem__, 1e-3)
        weights.append((metrics["imitation/loss"], metrics["imitation/grad_norm"]))
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


def test_imitation_leaves_the_policy_optimizer_untouched():
    policy, pictures = fresh_policy(), Pictures()
    learner = learner_of(policy)
    learner.imitate_step(demonstrations(policy, pictures), pictures.__getitem__, 1e-3)
    moments = learner.state_dict()["optimizer"]["adamw"]
    assert not any(state["exp_avg"].any() for state in moments.values())


def test_demonstrations_without_a_sampled_token_are_refused():
    policy, pictures = fresh_policy(), Pictures()
    with pytest.raises(ValueError, match="no token to imitate"):
        learner_of(policy).imitate_step([conversation(policy, pictures, [[]])], pictures.__getitem__, 1e-3)
