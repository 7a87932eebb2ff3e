"""Which tokenizer token ids belong to: ids of one mean nothing to another."""

from __future__ import annotations

import hashlib
import json

# What turns a text into ids. Padding, truncation and the decoder are settings of a moment or of the way back.
_MAKES_IDS = ("model", "added_tokens", "normalizer", "pre_tokenizer")


def tokenizer_fingerprint(document: str) -> str:
    """sha256 over what decides the ids in a tokenizer's JSON (`tokenizer.json`, or `Tokenizer.to_str()`)."""
    tokenizer = json.loads(document)
    canonical = json.dumps({part: tokenizer[part] for part in _MAKES_IDS}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
