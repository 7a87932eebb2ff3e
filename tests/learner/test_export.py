"""An exported checkpoint is an ordinary model folder with the learner's weights."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from test_checkpoint import PICTURES, Run, spoil
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from arpo.learner.checkpoint import CheckpointError
from arpo.learner.export import export, fill
from arpo.policy.load import load_policy
from arpo.protocol.problems import ConfigError
from policy_kit import MAX_PIXELS, MIN_PIXELS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = Run()
    run.step(0)
    return run, run.save(tmp_path_factory.mktemp("checkpoints"), 1)


def logprobs(run, policy):
    run.policy.model.eval()
    from arpo.learner.imitation import sequence_logprobs

    return sequence_logprobs(policy, run.rows(0), PICTURES.__getitem__, temperature=1.0, micro_batch_rows=1)


def test_the_exported_policy_is_the_learners(trained, tmp_path):
    run, saved = trained
    folder = tmp_path / "deep" / "model"
    assert export(saved, folder) == "float32"
    policy = load_policy(folder, device="cpu", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    assert logprobs(run, policy) == logprobs(run, run.policy)
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
    assert logprobs(run, policy) == logprobs(run, run.policy)
    with pytest.raises(ConfigError, match="not a vision-language model folder"):
        load_policy(saved.path / "policy", **options)  # there are no weights to be read


def test_the_type_of_the_weights_can_be_chosen(trained, tmp_path):
    run, saved = trained
    assert export(saved, tmp_path / "half", "bfloat16") == "bfloat16"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    for half, full in zip(model.parameters(), run.policy.model.parameters(), strict=True):
        assert torch.equal(half, full.bfloat16())


def test_a_folder_that_holds_something_is_left_alone(trained, tmp_path):
    _, saved = trained
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="exists already and is not an empty folder; fix: "):
        export(saved, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    export(saved, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_adapters_are_merged_by_those_who_know_them(trained, tmp_path, monkeypatch):
    run = Run()
    saved = run.save(tmp_path / "checkpoints", 1)
    (saved.path / "policy" / "lora.json").write_text(json.dumps({"rank": 8}))
    seen = []

    def merged(state, settings):
        seen.append(settings)
        return {name: torch.full_like(tensor, 0.5) for name, tensor in state.items()}

    monkeypatch.setitem(sys.modules, "arpo.policy.lora", types.SimpleNamespace(merged=merged))
    export(saved, tmp_path / "model")
    assert seen == [{"rank": 8}]
    assert not (tmp_path / "model" / "lora.json").exists()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert all(bool((parameter == 0.5).all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tensors/.metadata", "tensors/__0_0.distcp", "policy/config.json"])
def test_a_damaged_checkpoint_is_an_error_that_names_it_and_nothing_is_written(tmp_path, name):
    saved = Run().save(tmp_path / "checkpoints", 1)
    spoil(saved.path / name)
    with pytest.raises(CheckpointError, match="step-000001 cannot be loaded"):
        export(saved, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
