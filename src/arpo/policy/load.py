"""Loading a policy: the model, its tokenizer, and how conversations and pictures become its inputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.initialization import no_init_weights

from arpo.policy.allocator import map_large_blocks
from arpo.policy.attention import PACKED_ATTENTION
from arpo.policy.encoder import ChatEncoder
from arpo.policy.images import ImageEncoder
from arpo.policy.limits import IMAGES_KEPT_BYTES
from arpo.policy.lora import Lora, fold, inject
from arpo.policy.quiet import no_progress_bars
from arpo.policy.threads import leave_a_core
from arpo.protocol.problems import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ATTENTION = {"": "sdpa", "text_config": PACKED_ATTENTION, "vision_config": "sdpa"}


@dataclass(frozen=True)
class Policy:
    """A vision-language model and everything that turns a conversation into its inputs.

    model: a Hugging Face image-text-to-text model. suppressed [vocabulary]: true for ids that are never
    sampled.
    """

    model: Any
    tokenizer: Any
    encoder: ChatEncoder
    images: ImageEncoder
    processor: Any
    suppressed: torch.Tensor
    pad_token_id: int
    lora: Lora | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.suppressed.device

    def copy(self) -> Policy:
        """The same policy with weights of its own and adapters folded in; tokenizer and picture cache are shared."""
        model = copy.deepcopy(self.model)
        if self.lora is not None:
            fold(model)
        return replace(self, model=model, lora=None)

    def save_blueprint(self, folder: Path) -> None:
        """Write a Hugging Face model folder without weights; `load_policy(folder, weights=False)` reads it."""
        self.model.config.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.lora is not None:
            self.lora.save(folder)


def load_policy(
    path_or_name: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Literal["auto", "cpu", "cuda", "meta"] = "auto",
    min_pixels: int,
    max_pixels: int,
    freeze_vision: bool = True,
    gradient_checkpointing: bool = False,
    lora: Lora | None = None,
    seed: int = 0,
    weights: bool = True,
    image_cache_bytes: int = IMAGES_KEPT_BYTES,
) -> Policy:
    """Load a Qwen2-VL, Qwen2.5-VL or Qwen3-VL policy from a folder, or from the hub by name.

    min_pixels, max_pixels: bounds of the picture that the model sees; they replace the model's own.
    freeze_vision: the whole vision tower, its merger included, gets no gradients. lora: train adapters only;
    seed: of their first values. weights: without, the folder's weights are not read, nor need they be there; the
    parameters hold anything until someone fills them. device: `meta` keeps shapes alone, for which `weights` must be off.
    image_cache_bytes: bound of the preprocessed pictures that are remembered.
    On the CPU torch is left all cores but one (`arpo.policy.threads`). Large blocks of host memory are mapped
    (`arpo.policy.allocator`).
    Raises ConfigError when there is no such model, it is no vision-language model, or the device is missing.
    """
    target = _device(device)
    map_large_blocks()
    if target.type == "cpu":
        leave_a_core()
    try:
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(path_or_name)
            # PIL, whether or not torchvision is there: the two resize differently
            processor = AutoImageProcessor.from_pretrained(
                path_or_name, backend="pil", size={"shortest_edge": min_pixels, "longest_edge": max_pixels}
            )
            model = (
                AutoModelForImageTextToText.from_pretrained(
                    path_or_name, dtype=_DTYPES[dtype], attn_implementation=_ATTENTION
                )
                if weights
                else blank_model(path_or_name, dtype, target if target.type == "meta" else None)
            )
    except (OSError, ValueError) as error:
        raise ConfigError(_why(path_or_name, error)) from error
    if lora is not None:
        inject(model, lora, seed=seed)
    model.to(target)
    if freeze_vision:
        model.model.visual.requires_grad_(requires_grad=False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encoder = ChatEncoder(
        tokenizer.backend_tokenizer,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    suppressed = torch.zeros(model.get_output_embeddings().out_features, dtype=torch.bool)
    suppressed[[encoder.image_token_id, encoder.video_token_id]] = True
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.stop_token_ids[0]
    return Policy(
        model=model.eval(),
        tokenizer=tokenizer,
        encoder=encoder,
        images=ImageEncoder(processor, cache_bytes=image_cache_bytes),
        processor=processor,
        suppressed=suppressed.to(target),
        pad_token_id=pad_token_id,
        lora=lora,
    )


def blank_model(
    path_or_name: str | Path, dtype: Literal["float32", "bfloat16"], device: torch.device | None = None
) -> Any:
    """The model of a folder's configuration, its parameters not yet set. Raises OSError or ValueError.

    device: where it is made; None: on the CPU.
    """
    config = AutoConfig.from_pretrained(path_or_name)
    with no_init_weights(), device or torch.device("cpu"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=_DTYPES[dtype], attn_implementation=_ATTENTION
        )
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(path_or_name)
    return model


def _device(device: Literal["auto", "cpu", "cuda", "meta"]) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is cuda but torch sees no GPU; use model.device=auto or cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _why(path_or_name: str | Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if Path(path_or_name).is_dir():
        return f"{path_or_name} is not a vision-language model folder: {reason}"
    return (
        f"model.path {path_or_name}: no such folder, and the Hugging Face hub did not give it ({reason}); "
        "name a local folder, download it first with `hf download`, or use model.path=tiny"
    )
