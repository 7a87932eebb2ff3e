"""How much memory a run will need at its worst moments, from its configuration and the model's shape.

Invariant: everything is counted from what the code keeps, tensor by tensor, and nothing is fitted to a measurement.
`docs/memory.md` says how; the tests hold it against measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arpo.agent.coordinates import FACTOR, image_tokens
from arpo.config.model import Config
from arpo.policy.limits import FEATURES_KEPT_BYTES, PATCHES_AT_ONCE, WEIGHTS_AT_ONCE_BYTES
from arpo.trainer import activations
from arpo.trainer.checks import row_tokens
from arpo.trainer.shapes import ModelShape

GIB = 2**30


@dataclass(frozen=True)
class Load:
    """What one packed row and one batch of prompts hold at most.

    row_tokens, row_pictures, sampled: of a packed row; the loss covers `sampled` of its tokens. step_pictures:
    different ones in a step. picture_tokens: of one. prompts: sampled together, each of prompt_tokens with
    prompt_pictures, and followed by new_tokens.
    """

    row_tokens: int
    row_pictures: int
    sampled: int
    step_pictures: int
    picture_tokens: int
    prompts: int
    prompt_tokens: int
    prompt_pictures: int
    new_tokens: int


@dataclass(frozen=True)
class Moment:
    """One time in a run: bytes by what they are for, in the memory where the model computes."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Prediction:
    """Of one rank. moments: in the order of a step. host: bytes that `learner.cpu_offload` keeps outside the GPU."""

    moments: tuple[Moment, ...]
    host: int = 0

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)


def load_of(config: Config, shape: ModelShape) -> Load:
    """What rows and prompts hold under a configuration. Raises ValueError for a screen that no policy can be shown."""
    agent, steps, reply = config.agent, config.rollout.max_steps, config.engine.max_new_tokens
    side = shape.vision.patch * shape.vision.merge
    picture = image_tokens(*config.env.screen, min_pixels=agent.min_pixels, max_pixels=agent.max_pixels)
    episode = row_tokens(config, steps)
    episodes = config.trainer.tasks_per_step * config.rollout.group_size
    tokens = min(config.learner.max_row_tokens, episodes * episode)
    turns = math.ceil(tokens / episode * steps)
    return Load(
        row_tokens=tokens,
        row_pictures=turns,
        sampled=min(tokens, turns * reply),
        step_pictures=episodes * steps,
        picture_tokens=math.ceil(picture * (FACTOR / side) ** 2),
        prompts=min(config.engine.max_batch, config.env.desktops),
        prompt_tokens=episode - reply,
        prompt_pictures=steps,
        new_tokens=reply,
    )


def predict(
    config: Config, shape: ModelShape, *, load: Load | None = None, leader: bool = True
) -> Prediction:
    """The worst moments of one rank.

    load: what rows and prompts hold; None: `load_of`. leader: of rank 0, where the engine's model stands too.
    """
    rank = _Rank(config, shape, load or load_of(config, shape), leader=leader)
    return Prediction(tuple(rank.moments()), rank.host)


class _Rank:
    """Counts one rank's bytes. `e`: bytes of a number that is computed with; `master`: of a trained weight."""

    def __init__(self, config: Config, shape: ModelShape, load: Load, *, leader: bool) -> None:
        model, learner, text, vision = config.model, config.learner, shape.text, shape.vision
        self.text, self.vision, self.load, self.leader = text, vision, load, leader
        self.ranks = config.learner_ranks
        self.gpu = config.hardware.gpus > 0
        self.checkpointing = model.gradient_checkpointing
        self.chunk = min(learner.logits_chunk, load.sampled)
        self.lora = model.lora.rank
        self.frozen_tower = model.freeze_vision or self.lora > 0
        self.vllm = config.engine.vllm if config.engine.kind == "vllm" else None
        share = config.engine.vllm.gpu_memory_utilization * config.hardware.gpu_memory_gib * GIB
        self.awake = int(share) if config.colocated and self.gpu else 0
        self.apart = config.launcher.kind == "ray"
        self.e = 2 if model.dtype == "bfloat16" else 4
        self.master = 2 if learner.weights == "kahan" else 4

        adapters = text.lora_parameters(self.lora)
        blocks = 0 if self.frozen_tower else vision.depth * vision.block_parameters
        tower = 0 if self.frozen_tower else vision.parameters
        self.tower = vision.parameters if self.frozen_tower else 0
        self.frozen = text.parameters if self.lora else 0
        self.trained = text.layers * adapters if self.lora else text.parameters + tower
        self.layer = text.layer_parameters + adapters
        self.trained_layer = adapters or text.layer_parameters
        self.root = text.root_parameters + tower - blocks
        self.head = 0 if self.lora else text.embedding_parameters

        self.gradients = 4 * self.trained // self.ranks
        self.weights = (self.master * self.trained + self.e * self.frozen) // self.ranks
        # fp32: two moments of 4 bytes; kahan: of 2 and of 4, and 2 for what rounding took
        optimizers = 2 if config.imitation.enabled else 1
        self.optimizer = 8 * optimizers * self.trained // self.ranks
        self.reference = self.master * self.trained // self.ranks if learner.kl != "off" else 0
        self.offloaded = learner.cpu_offload and self.gpu
        kept = self.weights + self.optimizer + self.reference + self.gradients + self._reduced(self.trained)
        self.host = kept if self.offloaded else 0
        self.layer_bytes = activations.text_layer(
            text, self.e, gpu=self.gpu, lora_rank=self.lora, dropout=model.lora.dropout
        )

    def moments(self) -> Iterator[Moment]:
        """All that may be the worst one."""
        yield self._start()
        if self.leader and self.vllm is None:
            yield self._moment("sampling", **self._sampling())
        if self.awake:
            yield self._moment("sampling", engine=self.awake)
        if self.frozen_tower and self.load.row_pictures:
            yield self._moment("encoding pictures", gradients=self.gradients, pictures=self._encoding())
        yield self._moment("output head", **self._output_head())
        yield self._moment("last layer", **self._last_layer())
        yield self._moment("first layer", **self._first_layer())
        if not self.frozen_tower:
            yield self._moment("vision tower", **self._tower_backward())
        yield self._moment("reduction", **self._reduction())
        yield self._moment("optimizer step", gradients=self.gradients, temporaries=self._update())
        if self.leader and (self.ranks > 1 or self.lora or self.awake):
            yield self._moment(
                "weights to the engine", engine=self._taking(), **{"gathered weights": self._pushed()}
            )

    def _moment(self, name: str, **parts: int) -> Moment:
        """Resident bytes and those of the moment; what is offloaded is in the host's memory."""
        own = 0 if self.offloaded else 1
        resident = {
            "weights": own * self.weights + self.e * self.tower,
            "optimizer": own * self.optimizer,
            "reference": own * self.reference,
            "engine": self._engine(),
            "pictures": self._remembered(),
        }
        parts["gradients"] = own * parts.get("gradients", 0)
        return Moment(name, {n: resident.get(n, 0) + parts.get(n, 0) for n in resident | parts})

    def _engine(self) -> int:
        """A model beside the learner's. vLLM's is asleep while the learner works, or on GPUs of its own."""
        if self.vllm is not None and self.gpu:
            return 0
        return self.e * (self.text.parameters + self.vision.parameters) if self.leader else 0

    def _taking(self) -> int:
        """What a colocated engine holds while it takes weights: with Ray its caches come when the sender has let go."""
        if self.apart and self.awake:
            return self.e * (self.text.parameters + self.vision.parameters)
        return self.awake

    def _start(self) -> Moment:
        """Every rank loads the whole model before it keeps its part; the root's part is made last."""
        whole = self.master * self.trained + self.e * (self.frozen + self.tower)
        part = self.master * self.root // self.ranks
        return Moment("start", {"weights": whole + part, "engine": self._engine()})

    # pictures

    def _features(self, pictures: int) -> int:
        """What the language model sees of them."""
        return pictures * self.load.picture_tokens * self.text.hidden * self.e * (1 + self.vision.levels)

    def _remembered(self) -> int:
        """Features that a frozen tower keeps; those of the row at hand are alive whatever the bound says."""
        if not self.frozen_tower:
            return 0
        kept = min(FEATURES_KEPT_BYTES, self._features(self.load.step_pictures))
        return max(kept, self._features(self.load.row_pictures))

    def _patches(self, pictures: int) -> int:
        return pictures * self.load.picture_tokens * self.vision.merge**2

    def _encoding(self) -> int:
        together = min(self._patches(self.load.row_pictures), PATCHES_AT_ONCE + self._patches(1))
        patch = activations.vision_forward(self.vision, self.e) + activations.pixels(self.vision)
        return together * patch

    # forward and backward

    def _saved(self) -> int:
        """What all layers keep until their backward pass."""
        text = self.text
        layer = self.e * text.hidden if self.checkpointing else self.layer_bytes
        tokens = text.layers * layer + activations.text_ends(text, self.e)
        return self.load.row_tokens * tokens + self._tower_saved()

    def _tower_saved(self) -> int:
        """What a trained tower keeps of a row's pictures."""
        if self.frozen_tower:
            return 0
        vision = self.vision
        block = self.e * vision.hidden if self.checkpointing else activations.vision_block(vision, self.e)
        patch = vision.depth * block + activations.vision_ends(vision, self.e)
        return self._patches(self.load.row_pictures) * patch

    def _gathered(self, layers: int) -> int:
        """Whole weights of the root and of some layers; beside each layer on several ranks, a buffer of the next."""
        buffers = 1 if self.ranks > 1 else 0
        return self.e * (self.root + (layers + buffers) * self.layer)

    def _output_head(self) -> dict[str, int]:
        load, text = self.load, self.text
        hidden = 2 * self.e * load.sampled * text.hidden
        logits = max(
            activations.head_forward(text.vocabulary, self.chunk),
            activations.head_backward(
                text.vocabulary, text.hidden, self.chunk, self.e, trained=self.head > 0
            ),
        )
        return {
            "gradients": self.gradients,
            "activations": self._saved() + hidden,
            "logits": logits,
            "gathered weights": self._gathered(1),
        }

    def _last_layer(self) -> dict[str, int]:
        load = self.load
        computed_again = self.layer_bytes if self.checkpointing else 0
        alive = activations.text_backward(self.text, self.e)
        return {
            "gradients": self.gradients,
            "activations": self._saved() + load.row_tokens * (computed_again + alive),
            "gathered weights": self._gathered(2),
            "layer gradients": self.e * (self.head + self.trained_layer),
        }

    def _first_layer(self) -> dict[str, int]:
        """The other layers' gradients are on their ranks by now; the root's wait for the end, whole."""
        load, text = self.load, self.text
        alive = activations.text_backward(text, self.e)
        return {
            "gradients": self.gradients + self._reduced(text.layers * self.trained_layer),
            "activations": load.row_tokens * (self.layer_bytes + alive) + self._tower_saved(),
            "gathered weights": self._gathered(1),
            "layer gradients": self.e * self.head + (self.e + 4) * self.trained_layer,
        }

    def _tower_backward(self) -> dict[str, int]:
        """A trained tower's gradients come after the language model's."""
        vision, block = self.vision, self.vision.block_parameters
        layers = self.text.layers * self.trained_layer + vision.depth * block
        again = activations.vision_block(vision, self.e) if self.checkpointing else 0
        return {
            "gradients": self.gradients + self._reduced(layers),
            "activations": self._tower_saved() + self._patches(self.load.row_pictures) * again,
            "gathered weights": self._gathered(0) + self.e * block,
            "layer gradients": self.e * self.root + (self.e + 4) * block,
        }

    def _reduced(self, parameters: int) -> int:
        """What one pass's gradients add on this rank: bf16 ones stand beside their fp32 sums until the pass has ended,
        fp32 ones are added to the sums layer by layer.
        """
        if self.master == 4:
            parameters = min(parameters, self.trained_layer)
        return self.master * parameters // self.ranks

    def _reduction(self) -> dict[str, int]:
        """The root's gradients are summed over the ranks in fp32, last of all."""
        root = 0 if self.lora else self.root
        return {
            "gradients": self.gradients + self._reduced(self.trained),
            "layer gradients": (self.e + 4) * root + 4 * self.trained_layer,
        }

    def _update(self) -> int:
        """Kahan's update is made in fp32."""
        largest = max(self.head, self.text.hidden * self.text.intermediate) if not self.lora else 0
        return (24 if self.master == 2 else 8) * largest // self.ranks

    def _pushed(self) -> int:
        """The leader gathers all weights, and adapters are folded into a copy of theirs. A colocated engine is sent them
        through a buffer.
        """
        gathers = self.ranks > 1 and self.leader
        whole = (self.master * self.trained + self.e * self.frozen) if gathers else 0
        folded = self.e * self.text.layers * self.text.layer_parameters if self.lora else 0
        buffer = max(WEIGHTS_AT_ONCE_BYTES, self.e * self.text.embedding_parameters) if self.awake else 0
        return whole + folded + buffer

    # sampling

    def _sampling(self) -> dict[str, int]:
        """Prompts are padded to the longest; the mask is a byte a pair, and a number a pair inside an attention."""
        load, text, vision, e = self.load, self.text, self.vision, self.e
        tokens = load.prompts * load.prompt_tokens
        cache = (tokens + load.prompts * load.new_tokens) * 2 * text.key * e * text.layers
        mask = load.prompts * load.prompt_tokens**2
        prefill = mask + max(
            tokens * activations.text_mlp_forward(text, e),
            tokens * activations.text_attention_forward(text, e) + e * mask,
        )
        patches = self._patches(load.prompts * load.prompt_pictures)
        features = self._features(load.prompts * load.prompt_pictures)
        reading = cache + prefill + features
        seeing = patches * activations.vision_forward(vision, e) + features
        pixels = patches * activations.pixels(vision)
        return {"engine": pixels + max(reading, seeing)}
