"""An exported checkpoint is an ordinary model folder with the learner's weights."""

from __future__ import annotations

import json

import pytest
import torch
from test_checkpoint import PICTURES, Run, spoil
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from arpo.learner.checkpoint import CheckpointError
from arpo.learner.export import export, fill
from arpo.learner.rows import whole_row
from arpo.policy.load import load_policy
from arpo.policy.logprobs import packed_logprobs
from arpo.policy.lora import Lora
from arpo.protocol.problems import ConfigError
from policy_kit import MAX_PIXELS, MIN_PIXELS, fresh_policy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = Run()
    run.step(0)
    return run, run.save(tmp_path_factory.mktemp("checkpoints"), 1)


def logprobs(run, policy):
    """Of what the run sampled, under an ordinary policy."""
    rows = [whole_row(trajectory).token_row() for trajectory in run.rows(0)]
    with torch.no_grad():
        return packed_logprobs(policy, rows, PICTURES.__getitem__, temperature=1.0)[0].tolist()


def learners(run):
    """The same under the run's learner."""
    return [x for row in run.learner.token_logprobs(run.rows(0), PICTURES.__getitem__) for x in row]


def test_the_exported_policy_is_the_learners(trained, tmp_path):
    run, saved = trained
    folder = tmp_path / "deep" / "model"
    assert export(saved, folder) == "float32"
    policy = load_policy(folder, device="cpu", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    assert logprobs(run, policy) == pytest.approx(learners(run), abs=1e-5)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(run.policy.tokenizer)
    assert AutoImageProcessor.from_pretrained(folder).patch_size == run.policy.processor.patch_size
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stop == run.policy.model.generation_config.eos_token_id


def test_a_policy_made_from_the_blueprint_is_filled_with_the_weights(trained):
    run, saved = trained
    options = {"device": "cpu", "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    policy = load_policy(saved.path / "policy", weights=False, **options)
    fill(policy.model, saved)
    assert logprobs(run, policy) == pytest.approx(learners(run), abs=1e-5)
    with pytest.raises(ConfigError, match="not a vision-language model folder"):
        load_policy(saved.path / "policy", **options)  # there are no weights to be read


def test_the_type_of_the_weights_can_be_chosen(trained, tmp_path):
    run, saved = trained
    assert export(saved, tmp_path / "half", "bfloat16") == "bfloat16"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    weights = run.learner.weights()
    assert all(torch.equal(half, weights[name].bfloat16()) for name, half in model.named_parameters())


def test_a_folder_that_holds_something_is_left_alone(trained, tmp_path):
    _, saved = trained
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="exists already and is not an empty folder; fix: "):
        export(saved, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    export(saved, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_adapters_are_part_of_the_exported_weights(tmp_path):
    run = Run(lora=Lora(rank=4, alpha=8.0))
    before = logprobs(run, fresh_policy())
    for number in range(3):
        run.step(number)
    saved = run.save(tmp_path / "checkpoints", 1)
    folder = tmp_path / "model"
    export(saved, folder)
    assert not (folder / "lora.json").exists()
    policy = load_policy(folder, device="cpu", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    assert logprobs(run, policy) == pytest.approx(learners(run), abs=1e-5)
    assert logprobs(run, policy) != pytest.approx(before, abs=1e-3)
    # and one that is resumed has them as adapters
    resumed = Run(lora=Lora(rank=4, alpha=8.0))
    resumed.load(saved)
    assert learners(resumed) == pytest.approx(learners(run), abs=1e-6)


@pytest.mark.parametrize("name", ["tensors/.metadata", "tensors/__0_0.distcp", "policy/config.json"])
def test_a_damaged_checkpoint_is_an_error_that_names_it_and_nothing_is_written(tmp_path, name):
    saved = Run().save(tmp_path / "checkpoints", 1)
    spoil(saved.path / name)
    with pytest.raises(CheckpointError, match="step-000001 cannot be loaded"):
        export(saved, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
