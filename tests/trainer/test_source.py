"""What of the configuration a policy is loaded with."""

import hashlib

from arpo.config.load import load_config
from arpo.trainer.source import PolicySource
from policy_kit import picture, tiny_folder


def test_the_engine_remembers_as_many_pictures_as_are_configured():
    pictures = {hashlib.sha256(data).hexdigest(): data for data in map(picture, range(3))}
    read = []

    def read_picture(sha256):
        read.append(sha256)
        return pictures[sha256]

    for gib in (0.5, 0.0):
        config = load_config(
            None, [f"engine.image_cache_gib={gib}", "model.device=cpu", "model.dtype=float32"]
        )
        images = PolicySource(str(tiny_folder()), weights=True).load(config, adapters=False).copy().images
        for sha256 in [*pictures, *pictures]:
            images.get(sha256, read_picture)
    assert read == [*pictures, *pictures, *pictures]
