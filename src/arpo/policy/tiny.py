"""A Qwen-VL of about one million parameters, made on the spot: Qwen2.5-VL, or one of its relatives.

Invariant: the folder is an ordinary Hugging Face model folder, so the code that loads a 7B model loads this
one; the same corpus and seed always give the same folder, and a folder that exists is complete.

It learns what instruction and history determine within a minute or two on two cores; it does not learn to
see.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from arpo.protocol.problems import ConfigError

Architecture = Literal["qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
"""Of UI-TARS-1.5, of UI-TARS-2B, and Qwen's newest."""

VOCABULARY = 2000
_VISION_SCALE = 0.002
_MARKER = "tiny.json"
_RECIPE = 3
"""Part of the hash: raise it when a change below changes what is built."""

_PAD, _END = "<|endoftext|>", "<|im_end|>"
# Qwen2.5's added tokens; those of the second list are not "special" there either
_SPECIAL = [
    _PAD, "<|im_start|>", _END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
_ADDED = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip

# Qwen2.5-VL's chat template
_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus_hash(corpus: Sequence[str], seed: int, architecture: Architecture = "qwen2_5_vl") -> str:
    """Names what `build_tiny` builds: sha256 over the recipe, its arguments and the corpus in its order."""
    document = json.dumps([_RECIPE, VOCABULARY, architecture, seed, list(corpus)], ensure_ascii=False)
    return hashlib.sha256(document.encode()).hexdigest()


def cached_tiny(
    cache_dir: Path, corpus: Sequence[str], seed: int, architecture: Architecture = "qwen2_5_vl"
) -> Path:
    """The folder of the tiny model for these inputs, built at the first call; processes may race."""
    folder = cache_dir / f"tiny-{corpus_hash(corpus, seed, architecture)[:16]}"
    build_tiny(folder, corpus, seed, architecture)
    return folder


def build_tiny(
    folder: Path, corpus: Sequence[str], seed: int, architecture: Architecture = "qwen2_5_vl"
) -> None:
    """Build the tiny model into `folder`; does nothing when it is there already.

    corpus: what the tokenizer's merges are learned from (prompts, instructions, replies); fewer tokens a
    reply are learned sooner, so give it the texts that the policy will read and write. seed: of the random
    weights. Raises ConfigError when the folder holds something else.
    """
    key = corpus_hash(corpus, seed, architecture)
    if _is_built(folder, key):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write_model(scratch, _write_tokenizer(scratch, corpus), seed, architecture)
        (scratch / _MARKER).write_text(json.dumps({"key": key, "seed": seed}))
        scratch.chmod(0o755)  # mkdtemp makes it private
        try:
            scratch.rename(folder)
        except OSError:
            # another process finished the same folder first, or the folder holds something that is not ours
            if not _is_built(folder, key):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_built(folder: Path, key: str) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    marker = folder / _MARKER
    if marker.exists() and json.loads(marker.read_text())["key"] == key:
        return True
    raise ConfigError(f"{folder} holds something else than this tiny model; remove it or name another folder")


def _write_tokenizer(folder: Path, corpus: Sequence[str]) -> dict[str, int]:
    """Qwen's tokenizer with merges learned from the corpus. Returns the ids of all tokens."""
    from tokenizers import AddedToken, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    blank = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_SPECIAL) - len(_ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    blank.train_from_iterator(list(corpus), trainer)
    model = json.loads(blank.to_str())["model"]
    # training keeps the added tokens of the blank tokenizer; only what the corpus gave is wanted here
    vocabulary = {token: rank for rank, token in enumerate(t for t in model["vocab"] if t not in _SPECIAL)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token=_END,
        pad_token=_PAD,
        unk_token=None,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _ADDED])
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return dict(tokenizer.get_vocab())


def _write_model(folder: Path, ids: dict[str, int], seed: int, architecture: Architecture) -> None:
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from arpo.policy.quiet import no_progress_bars

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(_config(architecture, ids))
        # A random tower's features are noise. Imitation latches onto them at full size, and then a picture that
        # differs from the demonstration's loses what instruction and history alone determine.
        mergers = [model.model.visual.merger, *getattr(model.model.visual, "deepstack_merger_list", [])]
        for merger in mergers:
            last = merger.linear_fc2 if architecture == "qwen3_vl" else merger.mlp[-1]
            last.weight.mul_(_VISION_SCALE)
    model.generation_config.eos_token_id = ids[_END]
    model.generation_config.pad_token_id = ids[_PAD]
    patch = model.config.vision_config.patch_size
    with no_progress_bars():
        model.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=patch).save_pretrained(folder)
    preprocessor = folder / "preprocessor_config.json"
    document = json.loads(preprocessor.read_text())
    # the names that real Qwen2.5-VL folders carry, so that any backend of the auto classes finds its own
    # class
    document |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    preprocessor.write_text(json.dumps(document, indent=2))


def _config(architecture: Architecture, ids: dict[str, int]) -> Any:
    """Text 2 layers × 128, vision 2 blocks × 64."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    text: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        # near 1/√hidden; with a large model's 0.02 imitation takes three times as many steps
        "initializer_range": 0.08,
        # sections of a head's 16 frequencies for time, height and width, in Qwen's proportions
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "bos_token_id": ids[_PAD],
        "eos_token_id": ids[_END],
        "pad_token_id": ids[_PAD],
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4}
    whole: dict[str, Any] = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }
    wide = {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128}
    match architecture:
        case "qwen2_5_vl":
            vision |= wide | {"fullatt_block_indexes": [1]}
            return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **whole)
        case "qwen2_vl":
            vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
            return Qwen2VLConfig(text_config=text, vision_config=vision, **whole)
        case "qwen3_vl":
            vision |= wide | {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1]}
            # transformers interleaves whatever this says, vLLM only when it is said
            text["rope_parameters"]["mrope_interleaved"] = True
            return Qwen3VLConfig(text_config=text | {"head_dim": 32}, vision_config=vision, **whole)
