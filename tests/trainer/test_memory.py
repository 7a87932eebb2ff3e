"""The prediction of memory against measured peaks, and what is refused and proposed on its account."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from arpo.config.load import load_config
from arpo.policy.head import chunked_logprobs
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.base import Sampling
from arpo.rollout.engines.hf import HFEngine
from arpo.trainer.fitting import check_memory, fit, proposal
from arpo.trainer.memory import Load, predict
from arpo.trainer.shapes import ModelShape, model_shape, parse_shape
from memory_kit import Case, learn, peak_bytes, rows_of, shape_of
from policy_kit import Pictures, fresh_policy

CONFIGS = Path(__file__).parents[2] / "configs"
FP32 = ("model.dtype=float32",)
CHECKPOINTING = "model.gradient_checkpointing=true"
LORA = "model.lora.rank=8"
SEEING = {"hidden": 128, "intermediate": 128, "layers": 1, "tower": (256, 4), "pictures": 10}
CASES = {
    "plain": Case(settings=FP32),
    "wide": Case(hidden=512, intermediate=1024, layers=2, settings=FP32),
    "long, checkpointing": Case(layers=4, tokens=768, settings=(*FP32, CHECKPOINTING)),
    "large vocabulary": Case(layers=2, vocabulary=20_000, settings=FP32),
    "LoRA": Case(settings=(*FP32, LORA)),
    "LoRA, checkpointing": Case(settings=(*FP32, LORA, CHECKPOINTING)),
    "LoRA, dropout": Case(settings=(*FP32, LORA, "model.lora.dropout=0.1")),
    "KL": Case(layers=2, settings=(*FP32, "learner.kl=k3")),
    "Qwen3": Case("qwen3_vl", layers=2, settings=FP32),
    "bf16": Case(hidden=64, intermediate=192, layers=6, tokens=256, sampled=64),
    "kahan": Case(
        hidden=64, intermediate=192, layers=6, tokens=256, sampled=64, settings=("learner.weights=kahan",)
    ),
    "pictures": Case(**SEEING, settings=FP32),
    "pictures, Qwen3": Case("qwen3_vl", **SEEING, settings=FP32),
    "trained tower": Case(**SEEING, settings=(*FP32, "model.freeze_vision=false")),
    "trained tower, Qwen2": Case("qwen2_vl", **SEEING, settings=(*FP32, "model.freeze_vision=false")),
    "trained tower, checkpointing": Case(
        **SEEING, settings=(*FP32, "model.freeze_vision=false", CHECKPOINTING)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_near_the_measured_peak_of_a_step(name):
    case, pictures, held = CASES[name], Pictures(), {}

    def work():
        policy = case.policy()
        held["shape"], held["rows"] = shape_of(policy), rows_of(case, policy, pictures)
        learn(case, policy, held["rows"], pictures)

    measured = peak_bytes(work)
    row = held["rows"][0]
    load = Load(
        row_tokens=len(row.token_ids),
        row_pictures=len(row.images),
        sampled=sum(row.loss_mask),
        step_pictures=2 * len(row.images),
        picture_tokens=row.images[0].tokens if row.images else 0,
        prompts=0,
        prompt_tokens=0,
        prompt_pictures=0,
        new_tokens=0,
    )
    predicted = predict(case.config, held["shape"], load=load, leader=False).peak
    assert 0.85 <= predicted.total / measured <= 1.25, (predicted, measured)


@pytest.mark.parametrize(
    ("case", "pictures", "padding"),
    [
        (Case(layers=3, settings=FP32), 1, 500),
        (Case(hidden=128, intermediate=128, layers=2, tower=(256, 2), settings=FP32), 8, 0),
        (Case("qwen3_vl", hidden=128, intermediate=128, layers=2, tower=(256, 2)), 8, 0),
    ],
    ids=["text", "pictures", "pictures, Qwen3, bf16"],
)
def test_the_prediction_is_near_the_measured_peak_of_sampling(case, pictures, padding):
    policy = case.policy()
    shape, encoder, prompts = shape_of(policy), policy.encoder, []
    for number in range(4):
        ids = encoder.text_message("system", "You are a GUI agent.") + [5] * max(0, padding - number)
        message, tokens = encoder.image_message(140, 84)
        prompts.append([*ids, *message * pictures, *encoder.generation_prompt()])
    drawn = Pictures()
    rows_of(Case(pictures=pictures), policy, drawn, number=1)
    images = list(drawn.values())
    engine = HFEngine(policy, 4)

    def work():
        rows = [engine._row(_Prompt(ids, images)) for ids in prompts]
        engine._sample(rows, [Sampling(temperature=1.0, top_p=1.0, max_new_tokens=4)] * 4)

    measured = peak_bytes(work)
    load = Load(1, 0, 1, 0, tokens, 4, max(map(len, prompts)), pictures, 4)
    predicted = next(m for m in predict(case.config, shape, load=load).moments if m.name == "sampling")
    weights = sum(p.nbytes for p in policy.model.parameters())
    assert 0.8 <= (predicted.parts["engine"] - weights) / measured <= 1.25


class _Prompt:
    """What the engine reads of a request."""

    def __init__(self, prompt_ids, images):
        self.prompt_ids, self.images = prompt_ids, images


def test_the_peak_does_not_grow_with_vocabulary_times_tokens():
    vocabulary, hidden, tokens, chunk = 50_000, 8, 512, 32
    weight = torch.randn(vocabulary, hidden, requires_grad=True)
    suppressed = torch.zeros(vocabulary, dtype=torch.bool)

    def chunked(number):
        states = torch.randn(number, hidden, requires_grad=True)
        targets = torch.arange(number)
        logprobs, _ = chunked_logprobs(states, weight, targets, suppressed, temperature=1.0, chunk=chunk)
        logprobs.sum().backward()

    def naive(number):
        states = torch.randn(number, hidden, requires_grad=True)
        (states @ weight.T).log_softmax(-1).gather(-1, torch.arange(number)[:, None]).sum().backward()

    def growth(work, number):
        return peak_bytes(lambda: work(2 * number)) - peak_bytes(lambda: work(number))

    assert growth(chunked, tokens) < 0.01 * tokens * vocabulary * 4
    # the same bound catches a forward pass that makes all logits
    assert growth(naive, 32) > 32 * vocabulary * 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_shape_counts_the_parameters_that_transformers_makes(architecture, tied):
    config = fresh_policy(architecture).model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shape = parse_shape(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.vision.parameters == sum(p.numel() for p in model.model.visual.parameters())


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("ByteDance-Seed/UI-TARS-1.5-7B", 8_292_166_656),
        ("ByteDance-Seed/UI-TARS-2B-SFT", 2_208_985_600),
        ("ByteDance-Seed/UI-TARS-7B-DPO", 8_291_375_616),
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
    ],
)
def test_well_known_models_have_their_published_number_of_parameters(path, parameters):
    assert model_shape(path).parameters == parameters


def test_a_shape_is_read_from_a_folder_and_from_files_that_keep_the_text_at_the_top(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,'
        ' "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,'
        ' "tie_word_embeddings": true, "vision_config": {"in_chans": 3, "hidden_size": 1536}}'
    )
    assert model_shape(str(tmp_path)) == model_shape("ByteDance-Seed/UI-TARS-2B-SFT")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert model_shape(str(tmp_path)) is None


@pytest.mark.parametrize("path", ["tiny", "owner/unheard-of"])
def test_an_unknown_shape_is_said_to_be_unknown(path):
    assert f"the shape of {path} is not known" in check_memory(load_config(None, [f"model.path={path}"]))


SEVEN_B = ("model.path=ByteDance-Seed/UI-TARS-1.5-7B", "agent.profile=uitars-1.5")


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        (
            ["hardware.gpu_memory_gib=48", "model.gradient_checkpointing=false"],
            "model.gradient_checkpointing=true",
        ),
        (
            [
                "hardware.gpu_memory_gib=40",
                "learner.weights=kahan",
                "learner.logits_chunk=16384",
                "engine.max_new_tokens=1024",
            ],
            "learner.logits_chunk=256",
        ),
        (
            ["hardware.gpu_memory_gib=48", "rollout.group_size=64", "learner.max_row_tokens=131072"],
            "learner.max_row_tokens=",
        ),
        (["hardware.gpu_memory_gib=48", "engine.max_batch=64", "env.desktops=64"], "engine.max_batch="),
        (["hardware.gpu_memory_gib=37"], "learner.weights=kahan"),
        ([*SEVEN_B], "hardware.gpus="),
        ([*SEVEN_B, "hardware.gpu_memory_gib=60"], "learner.cpu_offload=true"),
    ],
)
def test_what_cannot_fit_is_refused_with_a_setting_that_the_prediction_says_fits(settings, fix):
    config = load_config(CONFIGS / "smoke.yaml", settings)
    with pytest.raises(ConfigError, match=r"needs about \d+ GiB at its worst moment") as refused:
        check_memory(config)
    message = str(refused.value)
    assert "\n" not in message
    changes = proposal(config, model_shape(config.model.path))
    assert any(f"{k}={v}".lower().startswith(fix) for k, v in changes.items()), message
    proposed = [f"{key}={value}" for key, value in changes.items()]
    assert all(change.lower() in message for change in proposed)
    assert "about" in check_memory(load_config(CONFIGS / "smoke.yaml", [*settings, *proposed]))


def test_a_computed_row_length_is_the_longest_that_fits():
    settings = ["hardware.gpu_memory_gib=48", "rollout.group_size=64", "learner.max_row_tokens=131072"]
    config = load_config(CONFIGS / "smoke.yaml", settings)
    shape = model_shape(config.model.path)
    longest = proposal(config, shape)["learner.max_row_tokens"]
    longer = load_config(CONFIGS / "smoke.yaml", [*settings, f"learner.max_row_tokens={longest + 1024}"])
    assert not fit(longer, shape).ok


def test_no_setting_is_proposed_where_none_helps():
    config = load_config(CONFIGS / "smoke.yaml", ["hardware.gpu_memory_gib=4"])
    with pytest.raises(ConfigError, match="fix: a smaller model"):
        check_memory(config)


def test_without_a_gpu_only_what_exceeds_the_machine_is_refused():
    cpu = ["hardware.gpus=0", "model.device=cpu"]
    small = check_memory(
        load_config(CONFIGS / "smoke.yaml", [*cpu, "model.lora.rank=8", "rollout.max_steps=2"])
    )
    assert "GiB of this machine" in small
    huge = ["model.path=ByteDance-Seed/UI-TARS-72B-DPO", "learner.kl=k3"]
    with pytest.raises(ConfigError, match="of this machine's"):
        check_memory(load_config(CONFIGS / "smoke.yaml", [*cpu, *huge]))


def test_more_ranks_hold_less_each_and_offloading_leaves_the_gpu():
    def parts(*settings: str):
        config = load_config(CONFIGS / "smoke.yaml", settings)
        shape: ModelShape = model_shape(config.model.path)
        return predict(config, shape)

    one, two = parts(), parts("hardware.gpus=2")
    step = {m.name: m.parts for m in one.moments}["optimizer step"]
    halved = {m.name: m.parts for m in two.moments}["optimizer step"]
    assert halved["optimizer"] == step["optimizer"] // 2
    away = parts("learner.cpu_offload=true")
    assert {m.name: m.parts for m in away.moments}["optimizer step"]["optimizer"] == 0
    assert away.host > step["optimizer"]


def test_a_colocated_engine_counts_while_it_is_awake():
    shape = model_shape("ByteDance-Seed/UI-TARS-1.5-7B")
    vllm = ["hardware.gpus=4", "engine.kind=vllm", "engine.vllm.gpu_memory_utilization=0.5"]

    def moments(*settings):
        found = predict(load_config(None, [*vllm, *settings]), shape).moments
        return {moment.name: moment.parts for moment in found}

    share, weights = 40 * 2**30, 2 * (shape.text.parameters + shape.vision.parameters)
    apart = moments("launcher.kind=ray")
    assert "sampling" not in apart
    assert apart["weights to the engine"]["engine"] == 0
    for launcher, taking in (("ray", weights), ("local", share)):
        shared = moments(f"launcher.kind={launcher}", "engine.vllm.colocate=true")
        assert shared["sampling"]["engine"] == share
        assert shared["weights to the engine"]["engine"] == taking
        sent = "gathered weights"
        buffer = shared["weights to the engine"][sent] - apart["weights to the engine"][sent]
        assert buffer == 2 * shape.text.embedding_parameters, "which is more than a GiB"
        assert shared["last layer"]["engine"] == shared["start"]["engine"] == 0, "it sleeps"


def test_the_doctor_shows_the_moments_and_train_refuses_what_does_not_fit(arpo):
    shown = arpo("doctor", "config=configs/smoke.yaml", "--no-hardware", "--memory")
    assert shown.returncode == 0, shown.stderr
    assert "output head" in shown.stdout
    assert "ok  memory: about" in shown.stdout
    too_large = ("config=configs/smoke.yaml", "hardware.gpu_memory_gib=8", "env.provider=simulated")
    refused = arpo("train", *too_large, "tasks.suite=simulated", "hardware.gpus=1")
    assert refused.returncode == 2
    assert "GiB at its worst moment" in refused.stderr
