from __future__ import annotations

import pytest

from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.trainer.checks import check, check_training, row_tokens

SERVED = ("engine.kind=openai", "engine.openai.model=m")


def problems(*overrides: str) -> list[str]:
    return check(load_config(None, overrides))


def test_the_defaults_fit_together():
    assert check(Config()) == []


@pytest.mark.parametrize(
    ("overrides", "problem", "fix"),
    [
        (["rollout.group_size=1"], "no advantage", "rollout.group_size=2"),
        (
            ["trainer.tasks_per_step=4", "rollout.group_size=4", "learner.minibatches=3"],
            "learner.minibatches=3 does not divide the 16 rows of a step",
            "learner.minibatches=2",
        ),
        (["agent.history_screenshots=8"], "less than rollout.max_steps=15", "agent.history_screenshots=15"),
        (["agent.max_pixels=3000"], "agent.min_pixels=3136 is above", "agent.min_pixels=3000"),
        (["agent.max_pixels=500", "agent.min_pixels=1"], "less than one image token", "784 or more"),
        (["learner.max_row_tokens=64"], "one screenshot and one turn", "learner.max_row_tokens="),
        (
            ["learner.max_row_tokens=8192", "learner.cut=skip"],
            "shorter than a whole episode",
            "learner.max_row_tokens=",
        ),
        (["learner.weights=kahan", "model.dtype=float32"], "in bf16", "model.dtype=bfloat16"),
        (["model.lora.rank=8", "model.freeze_vision=false"], "adapters only", "model.freeze_vision=true"),
        (["hardware.gpus=2", "learner.ranks=4"], "learner.ranks=4 is more", "learner.ranks=2"),
        (["learner.cpu_offload=true"], "hardware.gpus=0", "learner.cpu_offload=false"),
        (["launcher.engines=2"], "needs launcher.kind=ray", "launcher.engines=1"),
        (["launcher.address=head:6379"], "needs launcher.kind=ray", "launcher.kind=ray"),
        (
            ["launcher.kind=ray", "launcher.address=ray://head:10001"],
            "Ray's client",
            "launcher.address=HOST:6379",
        ),
        (
            ["launcher.kind=ray", "hardware.gpus=4", "learner.ranks=4"],
            "4 learner ranks and launcher.engines=1 have GPUs",
            "hardware.gpus=5",
        ),
        (["env.screen=[16384, 64]"], "aspect ratio", "env.screen="),
        (["env.url=http://host:18082"], "without env.token_file", "env.token_file="),
        (["env.url=host:18082", "env.token_file=t"], "no URL", "env.url=http://"),
        (
            ["engine.kind=openai", "engine.openai.model=m"],
            "without engine.openai.url",
            "engine.openai.url=http",
        ),
        (
            ["engine.kind=openai", "engine.openai.url=http://h"],
            "without engine.openai.model",
            "engine.openai.model=",
        ),
        ([*SERVED, "engine.openai.url=h:8000"], "no URL of a server", "engine.openai.url=http://"),
        ([*SERVED, "engine.openai.url=http://u:p@h/v1"], "which logs would show", "api_key_file"),
        ([*SERVED, "engine.openai.url=http://h/v1?key=k"], "which logs would show", "api_key_file"),
        (
            [*SERVED, "engine.openai.url=http://h/v1/chat/completions"],
            "not the base URL",
            "engine.openai.url=http://h/v1",
        ),
        (["model.device=cuda"], "hardware.gpus=0", "hardware.gpus=1"),
        (
            ["engine.kind=vllm", "engine.vllm.tensor_parallel=3", "hardware.gpus=4"],
            "does not divide hardware.gpus=4",
            "engine.vllm.tensor_parallel=2",
        ),
        (["engine.kind=vllm", "engine.temperature=3"], "above 2", "engine.temperature=2"),
        (["engine.kind=vllm", "engine.eval_temperature=3"], "above 2", "engine.eval_temperature=2"),
        (
            ["engine.kind=vllm", "engine.vllm.weight_transfer=nccl"],
            "hardware.gpus=0",
            "weight_transfer=auto",
        ),
        (
            [
                "engine.kind=vllm",
                "engine.vllm.weight_transfer=nccl",
                "engine.vllm.colocate=true",
                "hardware.gpus=1",
            ],
            "a GPU for each side",
            "weight_transfer=ipc",
        ),
        (
            [
                "engine.kind=vllm",
                "engine.vllm.weight_transfer=ipc",
                "engine.vllm.colocate=true",
                "engine.vllm.tensor_parallel=2",
                "hardware.gpus=2",
            ],
            "the sender's own GPU, but engine.vllm.tensor_parallel=2",
            "engine.vllm.weight_transfer=reload",
        ),
        (
            ["engine.kind=vllm", "engine.vllm.weight_transfer=ipc", "hardware.gpus=2"],
            "both sides on one GPU",
            "weight_transfer=nccl",
        ),
        (
            ["engine.kind=vllm", "engine.vllm.max_model_len=4096"],
            "shorter than a whole episode",
            "engine.vllm.max_model_len=",
        ),
        (["model.device=cpu", "hardware.gpus=2"], "uses none of hardware.gpus=2", "hardware.gpus=0"),
        (
            ["model.path=ByteDance-Seed/UI-TARS-2B-SFT"],
            "wrong coordinate convention",
            "agent.profile=uitars-1",
        ),
        (
            ["model.path=models/ui-tars-1.5-7b", "agent.profile=uitars-1"],
            "wrong coordinate convention",
            "agent.profile=uitars-1.5",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_named_with_its_fix(overrides, problem, fix):
    (message,) = problems(*overrides)
    what, _, remedy = message.partition("fix: ")
    assert problem in what
    assert fix in remedy
    assert "\n" not in message


@pytest.mark.parametrize("tokens", [64, 8192])
def test_the_row_length_that_is_proposed_is_accepted(tokens):
    config = load_config(None, [f"learner.max_row_tokens={tokens}", "learner.cut=skip"])
    whole = row_tokens(config, config.rollout.max_steps)
    assert f"learner.max_row_tokens={whole}" in check(config)[0]
    assert problems(f"learner.max_row_tokens={whole}", "learner.cut=skip") == []
    assert problems(f"learner.max_row_tokens={whole - 1}", "learner.cut=skip") != []


def test_a_row_shorter_than_an_episode_is_fine_where_episodes_are_cut():
    assert problems("learner.max_row_tokens=8192") == []


def test_every_problem_is_reported():
    assert len(problems("rollout.group_size=1", "learner.max_row_tokens=64", "env.url=http://h:1")) == 3


def test_a_model_server_needs_nothing_that_training_needs_and_cannot_train():
    untrainable = ("rollout.group_size=1", "agent.history_screenshots=2", "learner.max_row_tokens=64")
    config = load_config(None, [*SERVED, "engine.openai.url=http://h:8000", *untrainable])
    assert check(config) == []
    (message,) = check_training(config)
    assert "fix: engine.kind=hf to train, or `arpo evaluate`" in message
    assert check_training(load_config(None, [])) == []


def test_engine_actors_take_their_gpus_from_the_ranks():
    assert load_config(None, ["hardware.gpus=8"]).learner_ranks == 8
    on_ray = load_config(None, ["hardware.gpus=8", "launcher.kind=ray", "launcher.engines=2"])
    assert on_ray.learner_ranks == 6
    assert check(on_ray) == []


def test_spread_engines_take_all_their_gpus():
    vllm = ["hardware.gpus=8", "launcher.kind=ray", "engine.kind=vllm", "engine.vllm.tensor_parallel=2"]
    config = load_config(None, [*vllm, "launcher.engines=2"])
    assert config.learner_ranks == 4
    assert check(config) == []
    (message,) = problems(*vllm, "learner.ranks=8")
    assert "fix: hardware.gpus=10" in message
    assert problems(*vllm, "engine.vllm.weight_transfer=nccl", "learner.ranks=0") == []


def test_colocated_engine_actors_share_the_ranks_gpus():
    vllm = ["hardware.gpus=8", "launcher.kind=ray", "engine.kind=vllm", "engine.vllm.colocate=true"]
    config = load_config(None, [*vllm, "launcher.engines=8"])
    assert config.learner_ranks == 8
    assert check(config) == []
    (message,) = problems(*vllm, "launcher.engines=9")
    assert "launcher.engines=9 and there are 8 ranks; fix: launcher.engines=8" in message
    (message,) = problems(*vllm, "engine.vllm.tensor_parallel=2")
    assert "fix: engine.vllm.tensor_parallel=1 or engine.vllm.colocate=false" in message


def test_refilling_needs_advantages_within_the_group():
    assert problems("rollout.refill=4") == []
    (message,) = problems("rollout.refill=4", "learner.advantage=reinforce++")
    assert "fix: rollout.refill=0" in message
