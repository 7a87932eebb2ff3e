"""The fingerprint names what token ids mean: nothing else changes it, and everything of that does."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from arpo.policy.tiny import cached_tiny
from arpo.replay.tokenizer import tokenizer_fingerprint
from policy_kit import CORPUS, fresh_policy, tiny_folder


def test_a_checkpoints_copy_of_the_tokenizer_has_the_same_fingerprint(tmp_path) -> None:
    policy = fresh_policy()
    fingerprint = tokenizer_fingerprint(policy.tokenizer.backend_tokenizer.to_str())
    policy.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(again.backend_tokenizer.to_str()) == fingerprint
    assert tokenizer_fingerprint((tmp_path / "tokenizer.json").read_text()) == fingerprint
    # a batch that was padded leaves its settings in the tokenizer
    again(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert again.backend_tokenizer.padding is not None
    assert tokenizer_fingerprint(again.backend_tokenizer.to_str()) == fingerprint


def test_another_vocabulary_and_another_rule_have_another_fingerprint() -> None:
    text = (tiny_folder() / "tokenizer.json").read_text()
    cache = Path(__file__).parents[2] / ".cache" / "tests"
    other = cached_tiny(cache, [*CORPUS, "Quite other words, over and over"], 0) / "tokenizer.json"
    document = json.loads(text)
    document["normalizer"] = None
    texts = [text, other.read_text(), json.dumps(document)]
    document = json.loads(text)
    document["added_tokens"][0]["content"] += "x"
    texts.append(json.dumps(document))
    assert len({tokenizer_fingerprint(text) for text in texts}) == 4
