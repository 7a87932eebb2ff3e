import json

import pytest
import torch

from arpo.policy.logprobs import TokenRow, packed_logprobs
from arpo.policy.lora import Lora, merged
from policy_kit import Pictures, conversation, fresh_policy

LORA = Lora(rank=4, alpha=8.0)


def trained(policy):
    """Adapters with values, as if they had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def logprobs(policy):
    pictures = Pictures()
    t = conversation(policy, pictures, ["Press the button.", "It is done."])
    wanted = [index for index, sampled in enumerate(t.loss_mask) if sampled]
    row = TokenRow(t.token_ids, [image.sha256 for image in t.images], wanted)
    with torch.no_grad():
        return packed_logprobs(policy, [row], pictures.__getitem__, temperature=1.0)[0]


def test_new_adapters_change_nothing_and_are_all_that_is_trained():
    plain, adapted = fresh_policy(), fresh_policy(lora=LORA)
    torch.testing.assert_close(logprobs(adapted), logprobs(plain))
    trained_names = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained_names
    assert all("lora_" in name and ".language_model." in name for name in trained_names)


def test_the_same_seed_makes_the_same_adapters():
    one, same, other = (fresh_policy(lora=LORA, seed=s).model.state_dict() for s in (1, 1, 2))
    names = [name for name in one if "lora_A" in name]
    assert all(torch.equal(one[name], same[name]) for name in names)
    assert not any(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_folded_in_they_are_the_ordinary_model_with_the_same_outputs(architecture):
    policy = trained(fresh_policy(architecture, lora=LORA))
    expected = logprobs(policy)
    assert not torch.allclose(expected, logprobs(fresh_policy(architecture)), atol=1e-3)
    # a copy for an engine
    copied = policy.copy()
    plain = fresh_policy(architecture)
    names = {name for name, _ in plain.model.named_parameters()}
    assert {name for name, _ in copied.model.named_parameters()} == names
    torch.testing.assert_close(logprobs(copied), expected, atol=2e-5, rtol=0)
    # weights by name
    state = merged(dict(policy.model.named_parameters()), LORA)
    assert set(state) == names
    plain.model.load_state_dict(state, strict=False)
    torch.testing.assert_close(logprobs(plain), expected, atol=2e-5, rtol=0)


def test_settings_survive_a_folder(tmp_path):
    assert Lora.load(tmp_path) is None
    LORA.save(tmp_path)
    assert Lora.load(tmp_path) == LORA
    (tmp_path / "lora.json").write_text(json.dumps({"rank": 4, "size": 1}))
    with pytest.raises(TypeError, match="size"):
        Lora.load(tmp_path)
