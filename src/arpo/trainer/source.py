"""Where the policy of a run comes from: a model folder, the hub, one made for the tasks, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from arpo.agent.profiles import Profile
from arpo.checkpoints.folders import Checkpoint
from arpo.config.model import Config
from arpo.learner.checkpoint import POLICY
from arpo.policy.load import Policy, load_policy
from arpo.policy.lora import Lora
from arpo.policy.tiny import cached_tiny
from arpo.protocol.problems import ConfigError
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite
from arpo.trainer.cache import cache_folder


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from: a model folder or a hub name; `weights` false: only its shape and tokens."""

    path: str
    weights: bool

    def load(self, config: Config, *, adapters: bool) -> Policy:
        """The policy as configured; adapters: with those that are to be trained, if any are."""
        return self._load(config, config.model.device, adapters=adapters, weights=self.weights)

    def outline(self, config: Config) -> Policy:
        """The policy that is trained, without the memory of its weights: for a process that neither trains nor samples."""
        return self._load(config, "meta", adapters=True, weights=False)

    def _load(
        self, config: Config, device: Literal["auto", "cpu", "cuda", "meta"], *, adapters: bool, weights: bool
    ) -> Policy:
        section = config.model
        lora = Lora(section.lora.rank, section.lora.alpha, section.lora.dropout)
        return load_policy(
            self.path,
            dtype=section.dtype,
            device=device,
            min_pixels=config.agent.min_pixels,
            max_pixels=config.agent.max_pixels,
            freeze_vision=section.freeze_vision,
            gradient_checkpointing=section.gradient_checkpointing,
            lora=lora if adapters and lora.rank > 0 else None,
            seed=config.run.seed,
            weights=weights,
            image_cache_bytes=int(config.engine.image_cache_gib * 2**30),
        )


def policy_source(
    config: Config, suite: Suite, tasks: Sequence[Task], profile: Profile, saved: Checkpoint | None
) -> PolicySource:
    """The checkpoint's blueprint, if there is one, else `model.path`.

    `tiny` is made for the tasks (their words and those to imitate are its tokenizer's corpus) and cached.
    """
    if saved is not None:
        return PolicySource(str(saved.path / POLICY), weights=False)
    if config.model.path != "tiny":
        return PolicySource(config.model.path, weights=True)
    corpus = [profile.system(), *(profile.user_prompt(task.instruction) for task in tasks)]
    for task in tasks if config.imitation.enabled else ():
        if demonstration := suite.demonstration(task):
            corpus += [
                profile.render(turn.thought, list(turn.actions), demonstration.screen)
                for turn in demonstration.turns
            ]
    try:
        folder = cached_tiny(cache_folder() / "tiny", corpus, config.run.seed)
    except OSError as error:
        raise ConfigError(
            f"the cache {cache_folder()} cannot be written: {error.strerror}; fix: set ARPO_CACHE to a folder that can"
        ) from error
    return PolicySource(str(folder), weights=True)
