"""Makes the engine that a configuration names."""

from __future__ import annotations

from arpo.config.model import Config
from arpo.policy.load import Policy
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.hf import HFEngine
from arpo.rollout.engines.vllm import VllmEngine


def make_engine(
    config: Config, policy: Policy | None, folder: str, *, weights: bool, policy_version: int
) -> Engine:
    """An engine in this process. Raises ConfigError when what it needs is missing, EngineError when it does not start.

    policy: loaded, with its weights; `hf` copies it, `vllm` has no use for it. folder: a model folder or a hub name, which
    `vllm` reads by itself. weights: the folder has the weights of `policy_version`; without, they must be pushed.
    """
    section = config.engine
    if section.kind == "vllm":
        return VllmEngine(
            folder,
            section.vllm,
            dtype=config.model.dtype,
            min_pixels=config.agent.min_pixels,
            max_pixels=config.agent.max_pixels,
            max_images=config.agent.history_screenshots,
            max_batch=section.max_batch,
            row_tokens=config.learner.max_row_tokens,
            weights=weights,
            policy_version=policy_version,
            seed=config.run.seed,
            sender_elsewhere=config.launcher.kind == "ray",
        )
    if policy is None:
        raise ValueError("the hf engine is made of a policy")
    return HFEngine(policy, section.max_batch, policy_version=policy_version)
