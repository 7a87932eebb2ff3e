import random

import pytest
import torch
from reference import ReferenceRow, Rule, loss_and_gradient

from arpo.config.sections import LearnerSection, ReplaySection
from arpo.learner.learner import Learner
from arpo.learner.sharding import local
from arpo.protocol.problems import ConfigError
from arpo.replay import ReplayBuffer, RowStore
from arpo.trajectory import GroupMember
from policy_kit import Pictures, conversation, fresh_policy

NO_CLIP = 1e9


def learner_of(policy=None, *, replay=None, temperature=1.0, seed=0, **section):
    section = {"max_row_tokens": 200, "grad_clip": NO_CLIP, "lr": 1e-3} | section
    return Learner(
        policy or fresh_policy(),
        LearnerSection(**section),
        replay or ReplaySection(),
        temperature=temperature,
        seed=seed,
    )


def members(*trajectories, replayed=()):
    return [GroupMember(trajectory=t, replayed=i in replayed) for i, t in enumerate(trajectories)]


def first_gradient(learner):
    """The gradient of a learner's first optimizer step, read back from Adam's first moment."""
    beta1 = learner.section.betas[0]
    moments = learner.state_dict()["optimizer"]["adamw"]
    return {name: local(state["exp_avg"]) / (1 - beta1) for name, state in moments.items()}


def fp64_policy(**options):
    policy = fresh_policy(**options)
    policy.model.double()
    return policy


def assert_close(actual, expected, tolerance=1e-4, floor=1e-7):
    """Every tensor to `tolerance` of its own norm; `floor`: of the largest, for those that should be nearly zero."""
    assert actual.keys() == expected.keys()
    largest = max(float(g.norm()) for g in expected.values())
    assert largest > 0
    for name, value in expected.items():
        difference = float((actual[name].double() - value.double()).norm())
        assert difference <= tolerance * float(value.norm()) + floor * largest, name


def assert_all_zero(gradient):
    assert all(not value.any() for value in gradient.values())


def reference_rows(policy, pictures, group, format_coef=0.5):
    rows = []
    for member in group:
        t = member.trajectory
        images = [policy.images.encode(pictures[ref.sha256]) for ref in t.images]
        rows.append(
            ReferenceRow(
                token_ids=t.token_ids,
                sampled=t.loss_mask,
                behaviour=t.logprobs,
                pixel_values=[image.pixel_values for image in images],
                grids=[image.grid for image in images],
                reward=t.score + format_coef * t.format,
                replayed=member.replayed,
            )
        )
    return rows


def reference(policy, pictures, groups, rule=None, old=None, ref=None, format_coef=0.5):
    return loss_and_gradient(
        policy.model,
        [reference_rows(policy, pictures, group, format_coef) for group in groups],
        rule or Rule(),
        image_id=policy.encoder.image_token_id,
        video_id=policy.encoder.video_token_id,
        old=old,
        ref=ref,
    )


def two_groups(policy, pictures):
    """Groups of different sizes and rows of different lengths: mixed scores, a format error, an empty reply, a replay."""

    def row(number, replies, **options):
        return conversation(policy, pictures, replies, seed=number, episode_id=str(number), **options)

    done, press = "Thought: It is done.\nAction: finished()", "Press the button."
    first = members(
        row(0, [press, done], score=1.0),
        row(1, [press], score=0.0, format=-1.0, instruction="Say that it is done, then press the button."),
        row(2, [done, [], press], score=0.4),
        row(3, [[]], score=0.0),
        row(4, [done], score=0.7, behaviour=-9.0, stopped=False),
        replayed={0, 4},
    )
    second = members(row(5, [done], score=0.0), row(6, [press, press], score=1.0))
    equal = members(row(7, [press], score=0.3), row(8, [done], score=0.3))
    alone = members(row(9, [done], score=1.0))
    return [first, second, equal, alone]


CASES = {
    "as configured by default": (Rule(), {}, {}),
    "temperature, published importance": (
        Rule(temperature=0.6, importance_cap=None, fresh_cap=None),
        {"importance": "none"},
        {"importance": "none"},
    ),
    "caps and format coefficient": (
        Rule(importance_cap=0.7, fresh_cap=0.02),
        {"format_coef": 1.0, "importance_cap": 0.02},
        {"importance_cap": 0.7},
    ),
    "mean over sequences": (Rule(mean="sequence"), {"mean": "sequence"}, {}),
    "Dr.GRPO": (
        Rule(advantage="dr_grpo", mean="constant", mean_constant=50),
        {"advantage": "dr_grpo", "mean": "constant", "mean_constant": 50},
        {},
    ),
    "RLOO": (Rule(advantage="rloo"), {"advantage": "rloo"}, {}),
    "REINFORCE++": (Rule(advantage="reinforce++"), {"advantage": "reinforce++"}, {}),
    "REINFORCE++ with baseline": (
        Rule(advantage="reinforce++-baseline"),
        {"advantage": "reinforce++-baseline"},
        {},
    ),
}


@pytest.mark.parametrize(("rule", "section", "replay"), CASES.values(), ids=CASES)
def test_loss_and_gradient_of_every_parameter_are_the_references_to_1e_10_in_fp64(rule, section, replay):
    policy, pictures = fp64_policy(freeze_vision=False), Pictures()
    groups = two_groups(policy, pictures)
    loss, gradient, _ = reference(policy, pictures, groups, rule, format_coef=section.get("format_coef", 0.5))
    learner = learner_of(policy, replay=ReplaySection(**replay), temperature=rule.temperature, **section)
    metrics = learner.step(groups, pictures.__getitem__)
    assert metrics["learner/loss"] == pytest.approx(loss, rel=1e-10)
    assert_close(first_gradient(learner), gradient, tolerance=1e-10, floor=1e-13)
    norm = sum(float(g.norm()) ** 2 for g in gradient.values()) ** 0.5
    assert metrics["learner/grad_norm"] == pytest.approx(norm, rel=1e-10)


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_so_they_are_for_the_other_architectures(architecture):
    policy, pictures = fp64_policy(architecture=architecture, freeze_vision=False), Pictures()
    groups = two_groups(policy, pictures)
    loss, gradient, _ = reference(policy, pictures, groups)
    learner = learner_of(policy)
    metrics = learner.step(groups, pictures.__getitem__)
    assert metrics["learner/loss"] == pytest.approx(loss, rel=1e-10)
    assert_close(first_gradient(learner), gradient, tolerance=1e-10, floor=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance", "floor"), [("float32", 1e-4, 1e-7), ("bfloat16", 0.1, 0.02)])
def test_in_less_precision_they_are_the_references_to_a_stated_tolerance(dtype, tolerance, floor):
    policy, pictures = fresh_policy(dtype=dtype, freeze_vision=False), Pictures()
    groups = two_groups(policy, pictures)
    loss, gradient, _ = reference(policy, pictures, groups)
    learner = learner_of(policy)
    metrics = learner.step(groups, pictures.__getitem__)
    assert metrics["learner/loss"] == pytest.approx(loss, rel=tolerance)
    assert_close(first_gradient(learner), gradient, tolerance=tolerance, floor=floor)


@pytest.mark.parametrize("dual_clip", [1.5, None])
def test_a_second_epoch_meets_the_clips_as_the_reference_does(dual_clip):
    pictures = Pictures()
    start = fp64_policy()
    groups = two_groups(start, pictures)
    rule = Rule(clip_low=0.05, clip_high=0.1, dual_clip=dual_clip)
    section = {"clip_low": 0.05, "clip_high": 0.1, "dual_clip": dual_clip, "lr": 5e-3}
    _, gradient1, old = reference(start, pictures, groups, rule)

    once = learner_of(fp64_policy(), **section)
    once.step(groups, pictures.__getitem__)
    moved = fp64_policy()
    moved.model.load_state_dict(once.weights(), strict=False)
    _, gradient2, _ = reference(moved, pictures, groups, rule, old=old)

    twice = learner_of(fp64_policy(), epochs=2, **section)
    metrics = twice.step(groups, pictures.__getitem__)
    assert metrics["learner/optimizer_steps"] == 2
    assert metrics["learner/clip_low"] > 0
    assert metrics["learner/clip_high"] > 0
    assert (metrics["learner/dual_clip"] > 0) == (dual_clip is not None)
    # Adam's first moment after two steps is 0.9·(0.1·g1) + 0.1·g2
    moments = twice.state_dict()["optimizer"]["adamw"]
    second = {name: 10 * local(state["exp_avg"]) - 0.9 * gradient1[name] for name, state in moments.items()}
    assert_close(second, gradient2, tolerance=1e-9, floor=1e-12)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_the_divergence_from_the_reference_policy_is_the_references(kl):
    pictures = Pictures()
    start = fp64_policy()
    groups = two_groups(start, pictures)
    rule = Rule(kl=kl, kl_coef=0.3)
    section = {"kl": kl, "kl_coef": 0.3, "lr": 5e-3}
    learner = learner_of(fp64_policy(), **section)
    # what imitation makes of the policy is what training begins with
    learner.imitate_step([groups[0][0].trajectory], pictures.__getitem__, 1e-3)
    begun = fp64_policy()
    begun.model.load_state_dict(learner.weights(), strict=False)
    _, gradient1, ref = reference(begun, pictures, groups, rule)
    learner.step(groups, pictures.__getitem__)
    moved = fp64_policy()
    moved.model.load_state_dict(learner.weights(), strict=False)
    loss, gradient2, _ = reference(moved, pictures, groups, rule, ref=ref)
    metrics = learner.step(groups, pictures.__getitem__)
    assert metrics["learner/loss"] == pytest.approx(loss, rel=1e-9)
    assert metrics["learner/kl_reference"] != 0
    moments = learner.state_dict()["optimizer"]["adamw"]
    second = {name: 10 * local(state["exp_avg"]) - 0.9 * gradient1[name] for name, state in moments.items()}
    assert_close(second, gradient2, tolerance=1e-8, floor=1e-11)
    # looking at the reference has not moved the policy
    untouched = learner.weights()
    assert all(p.isfinite().all() for p in untouched.values())


def test_one_packed_row_and_many_give_the_same_step():
    pictures = Pictures()
    gradients, losses = [], []
    rows = [m.trajectory for group in two_groups(fresh_policy(), pictures) for m in group]
    longest = max(len(trajectory.token_ids) for trajectory in rows)
    for tokens in (longest, 2 * longest, 10_000):
        learner = learner_of(max_row_tokens=tokens)
        losses.append(
            learner.step(two_groups(learner.policy, pictures), pictures.__getitem__)["learner/loss"]
        )
        gradients.append(first_gradient(learner))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    assert_close(gradients[0], gradients[1])
    assert_close(gradients[0], gradients[2])


def test_a_group_of_failures_has_a_gradient_with_replay_and_none_without(tmp_path):
    pictures = Pictures()
    policy = fresh_policy()
    failures = [conversation(policy, pictures, ["Press."], score=0.0, seed=n) for n in range(3)]
    success = conversation(policy, pictures, ["Thought: It is done."], score=1.0, seed=9)
    outcomes = {}
    for rule in ("arpo", "off"):
        buffer = ReplayBuffer(ReplaySection(rule=rule), RowStore(tmp_path))
        buffer.close_group([success], random.Random(0))
        learner = learner_of()
        metrics = learner.step([buffer.close_group(failures, random.Random(0))], pictures.__getitem__)
        outcomes[rule] = (metrics["learner/grad_norm"], first_gradient(learner))
    assert outcomes["off"][0] == 0
    assert_all_zero(outcomes["off"][1])
    assert outcomes["arpo"][0] > 0
    assert any(value.any() for value in outcomes["arpo"][1].values())


@pytest.mark.parametrize("scores", [[0.5], [0.3, 0.3, 0.3], [0.1] * 7])
def test_groups_that_tell_nothing_apart_have_a_gradient_of_exactly_zero(scores):
    pictures, learner = Pictures(), learner_of()
    group = [
        conversation(learner.policy, pictures, ["Press."], score=s, seed=n) for n, s in enumerate(scores)
    ]
    metrics = learner.step([members(*group)], pictures.__getitem__)
    assert metrics["learner/grad_norm"] == 0
    assert metrics["learner/rows_without_signal"] == len(scores)
    assert_all_zero(first_gradient(learner))


def test_only_sampled_tokens_enter_the_loss_and_those_of_the_last_turn_do():
    pictures = Pictures()
    policy = fresh_policy()
    good = conversation(policy, pictures, ["Press the button.", "It is done."], score=1.0, stopped=False)
    bad = conversation(policy, pictures, ["Press."], score=0.0, seed=3)

    def gradient(trajectory):
        learner = learner_of()
        learner.step([members(trajectory, bad)], pictures.__getitem__)
        return first_gradient(learner)

    def changed(index):
        ids = list(good.token_ids)
        ids[index] = (ids[index] + 1) % 200
        return good.model_copy(update={"token_ids": ids})

    def same(a, b):
        return all(torch.equal(a[name], b[name]) for name in a)

    expected = gradient(good)
    # what follows the last sampled token has no part in anything
    last = max(index for index, sampled in enumerate(good.loss_mask) if sampled)
    assert len(good.token_ids) - last > 2
    assert all(same(gradient(changed(index)), expected) for index in range(last + 1, len(good.token_ids)))
    # the last turn's last token is trained on
    assert not same(gradient(changed(last)), expected)
    # log-probs at positions that were not sampled are not read
    noise = [value if sampled else 99.0 for value, sampled in zip(good.logprobs, good.loss_mask, strict=True)]
    assert same(gradient(good.model_copy(update={"logprobs": noise})), expected)


def test_minibatches_are_optimizer_steps_over_disjoint_rows():
    pictures, learner = Pictures(), learner_of(minibatches=3, epochs=2)
    groups = two_groups(learner.policy, pictures)
    metrics = learner.step(groups, pictures.__getitem__)
    assert metrics["learner/optimizer_steps"] == 6
    tokens = sum(sum(m.trajectory.loss_mask) for group in groups for m in group)
    assert metrics["learner/tokens"] == 2 * tokens


def test_steps_with_the_same_seed_are_bit_equal_and_the_seed_orders_the_minibatches():
    pictures = Pictures()

    def weights(seed):
        learner = learner_of(minibatches=3, seed=seed)
        learner.step(two_groups(learner.policy, pictures), pictures.__getitem__)
        return learner.weights()

    a, b, c = weights(1), weights(1), weights(2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_learner_given_anothers_state_continues_bit_equal(tmp_path):
    pictures, learner, other = Pictures(), learner_of(minibatches=3), learner_of(minibatches=3)
    groups = two_groups(learner.policy, pictures)
    learner.step(groups, pictures.__getitem__)
    learner.begin_save(tmp_path).result()
    other.load(tmp_path)
    for each in (learner, other):
        each.step(groups, pictures.__getitem__)
    a, b = learner.weights(), other.weights()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_cuts_are_counted():
    pictures, learner = Pictures(), learner_of()
    groups = two_groups(learner.policy, pictures)
    lengths = sorted(len(m.trajectory.token_ids) for group in groups for m in group)
    metrics = {
        cut: learner_of(max_row_tokens=lengths[-2], cut=cut).step(groups, pictures.__getitem__)
        for cut in ("last_turns", "oldest_screenshots", "skip")
    }
    assert metrics["last_turns"]["learner/rows_cut"] == metrics["last_turns"]["learner/turns_cut"] == 1
    assert metrics["oldest_screenshots"]["learner/rows_cut"] == 1
    assert metrics["oldest_screenshots"]["learner/screenshots_cut"] >= 1
    assert metrics["skip"]["learner/rows_cut"] == 0
    # two have no token, one does not fit
    assert metrics["skip"]["learner/rows_left_out"] == 2
    assert metrics["last_turns"]["learner/rows_left_out"] == 1


def test_a_step_without_rows_changes_nothing_and_says_so():
    learner = learner_of()
    before = {name: value.clone() for name, value in learner.weights().items()}
    metrics = learner.step([], Pictures().__getitem__)
    assert metrics["learner/optimizer_steps"] == metrics["learner/grad_norm"] == 0
    assert all(torch.equal(before[name], value) for name, value in learner.weights().items())


def test_an_invalid_trajectory_is_never_trained_on():
    pictures, learner = Pictures(), learner_of()
    unscored = conversation(learner.policy, pictures, ["Press."], score=None)
    with pytest.raises(ValueError, match="has no reward"):
        learner.step([members(unscored)], pictures.__getitem__)


def test_the_first_step_of_a_warm_up_moves_the_weights():
    pictures, learner = Pictures(), learner_of(warmup_steps=10, lr=1e-3)
    before = {name: value.clone() for name, value in learner.weights().items()}
    metrics = learner.step(two_groups(learner.policy, pictures), pictures.__getitem__)
    assert metrics["learner/lr"] == pytest.approx(1e-4)
    moved = [n for n, value in learner.weights().items() if not torch.equal(before[n], value)]
    assert moved
    assert not [name for name in moved if ".visual." in name]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(checkpointing):
    pictures = Pictures()
    plain = learner_of()
    plain.step(two_groups(plain.policy, pictures), pictures.__getitem__)
    other = learner_of(fresh_policy(gradient_checkpointing=checkpointing))
    other.step(two_groups(other.policy, pictures), pictures.__getitem__)
    assert other.policy.model.is_gradient_checkpointing == checkpointing
    assert_close(first_gradient(other), first_gradient(plain))


def test_a_bfloat16_policy_trains_on_fp32_masters():
    pictures = Pictures()
    learner = learner_of(fresh_policy(dtype="bfloat16"), lr=1e-6)
    before = {name: value.clone() for name, value in learner.weights().items()}
    for _ in range(2):
        learner.step(two_groups(learner.policy, pictures), pictures.__getitem__)
    # a step of 1e-6 is lost in bfloat16 weights of about 0.1 and kept in their masters
    moved = {name for name, value in learner.weights().items() if not torch.equal(before[name], value)}
    assert moved
    assert {learner.weights()[name].dtype for name in moved} == {torch.float32}
    frozen = {name: value for name, value in learner.weights().items() if ".visual." in name}
    assert {value.dtype for value in frozen.values()} == {torch.bfloat16}


def test_kahan_weights_stay_in_bfloat16_and_go_where_fp32_masters_go():
    pictures = Pictures()
    ends = {}
    for weights in ("fp32", "kahan"):
        learner = learner_of(fresh_policy(dtype="bfloat16"), weights=weights, lr=1e-5)
        groups = two_groups(learner.policy, pictures)
        start = {name: value.float().clone() for name, value in learner.weights().items()}
        for _ in range(12):
            learner.step(groups, pictures.__getitem__)
        ends[weights] = {name: v.float() - start[name] for name, v in learner.weights().items()}
        if weights == "kahan":
            assert {v.dtype for v in learner.weights().values()} == {torch.bfloat16}
            lost = learner.state_dict()["optimizer"]["adamw"]
            for name, state in lost.items():
                ends["kahan"][name] += local(state["lost"]).float()
    ours = torch.cat([v.flatten() for v in ends["kahan"].values()])
    theirs = torch.cat([v.flatten() for v in ends["fp32"].values()])
    assert float(theirs.norm()) > 0
    assert float((ours - theirs).norm()) < 0.2 * float(theirs.norm())


def test_kahan_needs_a_bfloat16_model():
    with pytest.raises(ConfigError, match=r"model.dtype=bfloat16"):
        learner_of(weights="kahan")


def test_an_engine_that_says_something_else_than_the_learner_raises_the_alarm():
    pictures, policy = Pictures(), fresh_policy()
    honest = conversation(policy, pictures, ["Press the button.", "It is done."], score=1.0)
    other = conversation(policy, pictures, ["Press."], seed=1)
    learner = learner_of(policy)
    said = learner.token_logprobs([honest], pictures.__getitem__)[0]
    filled = iter(said)
    exact = honest.model_copy(
        update={"logprobs": [next(filled) if sampled else 0.0 for sampled in honest.loss_mask]}
    )
    metrics = learner.step([members(exact)], pictures.__getitem__)
    assert metrics["learner/engine_logprob_gap_max"] < 1e-6
    assert metrics["learner/engine_logprob_gap_alarm"] == 0
    assert metrics["learner/fresh_weight"] == pytest.approx(1.0, abs=1e-6)
    metrics = learner.step([members(honest, other)], pictures.__getitem__)
    assert metrics["learner/engine_logprob_gap"] > 0.05
    assert metrics["learner/engine_logprob_gap_alarm"] == 1
