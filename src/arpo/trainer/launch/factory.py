"""Starts the engine of a run, in whatever process it is to sample."""

from __future__ import annotations

import asyncio

from arpo.learner.export import fill as fill_weights
from arpo.policy.load import Policy
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.make import make_engine
from arpo.trainer.launch.base import Plan


async def start_engine(plan: Plan, policy: Policy | None) -> Engine:
    """The configured engine with weights of its own: those of the plan, or none yet if only a learner has them.

    policy: as `load_sampled` loads it, if this process has it already. Raises ConfigError, CheckpointError, EngineError.
    """
    if policy is None and (plan.config.engine.kind == "hf" or plan.saved is not None):
        policy = await asyncio.to_thread(load_sampled, plan)
    # aside, as some take minutes to start
    engine = await asyncio.to_thread(
        make_engine,
        plan.config,
        policy,
        plan.source.path,
        weights=plan.source.weights,
        policy_version=plan.policy_version,
    )
    if policy is not None and plan.saved is not None:
        await engine.push(dict(policy.model.named_parameters()), plan.policy_version)
    return engine


def load_sampled(plan: Plan) -> Policy:
    """The policy of an engine that has no learner in its process: adapters folded in, weights of `plan.saved` if it is set.

    Raises ConfigError, CheckpointError.
    """
    policy = plan.source.load(plan.config, adapters=False)
    if plan.saved is not None:
        fill_weights(policy.model, plan.saved)
    return policy
