import pytest
import torch

from arpo.policy.vision import VisionTower
from policy_kit import Pictures, fresh_policy, picture


@pytest.fixture
def pictures():
    kept = Pictures()
    for number in range(4):
        kept.keep(picture(number))
    return kept


class Counting:
    def __init__(self, pictures):
        self.pictures = pictures
        self.asked = []

    def __call__(self, sha256):
        self.asked.append(sha256)
        return self.pictures[sha256]


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_features_are_the_towers_own(architecture, pictures):
    policy = fresh_policy(architecture)
    found = VisionTower(policy).features(list(pictures), pictures.__getitem__)
    for sha256, features in found.items():
        image = policy.images.encode(pictures[sha256])
        outputs = policy.model.model.get_image_features(
            image.pixel_values, torch.tensor([image.grid]), return_dict=True
        )
        torch.testing.assert_close(features.embedding, outputs.pooler_output[0], atol=1e-5, rtol=1e-4)
        assert features.grid == image.grid
        assert not features.embedding.requires_grad
    assert len(features.deepstack) == (2 if architecture == "qwen3_vl" else 0)


def test_a_frozen_tower_decodes_a_picture_once_and_only_when_it_is_wanted(pictures):
    tower, source = VisionTower(fresh_policy()), Counting(pictures)
    first, second, third, _ = pictures
    tower.features([first, second, first], source)
    tower.features([second, third], source)
    assert source.asked == [first, second, third]
    tower.forget()
    tower.features([first], source)
    assert source.asked[-1] == first


def test_what_is_remembered_stays_within_its_bound(pictures):
    policy = fresh_policy()
    one = VisionTower(policy).features(list(pictures)[:1], pictures.__getitem__)
    size = next(iter(one.values())).nbytes
    tower, source = VisionTower(policy, cache_bytes=2 * size), Counting(pictures)
    a, b, c, _ = pictures
    for sha256 in (a, b, a, c, a, b):
        tower.features([sha256], source)
    assert source.asked == [a, b, c, b]


def test_a_trained_tower_has_gradients_and_remembers_nothing(pictures):
    tower, source = VisionTower(fresh_policy(freeze_vision=False)), Counting(pictures)
    first = next(iter(pictures))
    for _ in range(2):
        assert tower.features([first], source)[first].embedding.requires_grad
    assert source.asked == [first, first]


def test_a_trained_tower_without_a_picture_sees_a_blank_one(pictures):
    """Every rank must call sharded weights as often as the others do."""
    found = VisionTower(fresh_policy(freeze_vision=False)).features([], pictures.__getitem__)
    assert found[""].embedding.requires_grad
    assert VisionTower(fresh_policy()).features([], pictures.__getitem__) == {}


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen3_vl"])
def test_a_remembered_picture_keeps_no_other_ones_memory(architecture, pictures):
    found = VisionTower(fresh_policy(architecture)).features(list(pictures), pictures.__getitem__)
    for features in found.values():
        tensors = (features.embedding, *features.deepstack)
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == features.nbytes
