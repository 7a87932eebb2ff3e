"""Makes the engine of a run, in whatever process it is to sample. The one place that knows which kinds there are."""

from __future__ import annotations

from arpo.learner.export import fill as fill_weights
from arpo.policy.load import Policy
from arpo.rollout.engines.base import Engine
from arpo.rollout.engines.hf import HFEngine
from arpo.trainer.launch.base import Plan


def make_engine(plan: Plan, policy: Policy) -> Engine:
    """The configured engine with weights of its own, copied from the policy. Raises ConfigError, CheckpointError."""
    return HFEngine(policy, plan.config.engine.max_batch, policy_version=plan.policy_version)


def load_sampled(plan: Plan) -> Policy:
    """The policy of an engine that has no learner in its process: adapters folded in, weights of `plan.saved` if it is set.

    Raises ConfigError, CheckpointError.
    """
    policy = plan.source.load(plan.config, adapters=False)
    if plan.saved is not None:
        fill_weights(policy.model, plan.saved)
    return policy
