import pytest
import torch

from arpo.policy.load import load_policy
from arpo.policy.lora import Lora
from arpo.protocol.problems import ConfigError
from policy_kit import MAX_PIXELS, MIN_PIXELS, fresh_policy, tiny_folder


def load(path, **options):
    return load_policy(path, device="cpu", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, **options)


def test_a_hub_name_without_a_hub_says_so_and_names_the_fix(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no such folder") as error:
        load("nobody/no-such-model-7B")
    assert "model.path=tiny" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_a_config_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="not a vision-language model folder") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_config_error():
    with pytest.raises(ConfigError, match="sees no GPU"):
        load_policy(tiny_folder(), device="cuda", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def test_a_frozen_vision_tower_gets_no_gradient_and_the_rest_does():
    model = fresh_policy(freeze_vision=True).model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    assert all(p.requires_grad for p in fresh_policy(freeze_vision=False).model.parameters())


def test_a_blueprint_loads_with_the_same_shape_and_tokens_and_holds_no_weights(tmp_path):
    policy = fresh_policy()
    policy.save_blueprint(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000
    assert not list(tmp_path.glob("*.safetensors"))
    loaded = load(tmp_path, weights=False)
    shapes = {name: p.shape for name, p in loaded.model.named_parameters()}
    assert shapes == {name: p.shape for name, p in policy.model.named_parameters()}
    assert loaded.encoder.text_message("user", "Press it.") == policy.encoder.text_message(
        "user", "Press it."
    )
    assert loaded.processor.size == policy.processor.size
    # how this program computes attention is nobody else's business
    assert "arpo" not in (tmp_path / "config.json").read_text()


def test_bfloat16_is_a_parameter_dtype():
    assert {p.dtype for p in fresh_policy(dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_an_outline_has_no_weights_and_writes_the_same_blueprint(tmp_path):
    lora = Lora(4, 8.0)
    whole, outline = fresh_policy(lora=lora), fresh_policy(lora=lora, weights=False, device="meta")
    assert all(parameter.device.type == "meta" for parameter in outline.model.parameters())
    assert {n: p.shape for n, p in outline.model.named_parameters()} == {
        n: p.shape for n, p in whole.model.named_parameters()
    }
    for name, policy in (("whole", whole), ("outline", outline)):
        (tmp_path / name).mkdir()
        policy.save_blueprint(tmp_path / name)
    written = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "outline").iterdir()}
