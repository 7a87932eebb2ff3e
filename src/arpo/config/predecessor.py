"""What the predecessor's keys are called here, for people who bring a configuration of its over.

They are those of EasyR1 and verl, of which it is a fork; both spellings are listed where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOTS = frozenset({"data", "algorithm", "worker", "actor_rollout_ref", "critic", "reward_model"})
"""Top-level sections that only the predecessor has."""


@dataclass(frozen=True)
class Successor:
    """key: the setting that took over; None when there is none. remark: what differs, or why."""

    key: str | None
    remark: str = ""

    def sentence(self, old: str) -> str:
        """One clause for a message."""
        remark = f" ({self.remark})" if self.remark else ""
        return (
            f"{old} is called {self.key} here{remark}" if self.key else f"{old} does not exist here{remark}"
        )


def successor(key: str) -> Successor | None:
    """What took a predecessor's key over; None for a key that was not the predecessor's."""
    if key in SUCCESSORS:
        return SUCCESSORS[key]
    if key.partition(".")[0] in ROOTS:
        return Successor(None, "see docs/configuration.md for what there is")
    return None


_PACKED = "rows are packed up to so many tokens"
_COUNTS_MINIBATCHES = "the number of optimizer steps an epoch, not of rows in one"

SUCCESSORS: dict[str, Successor] = {
    # data
    "data.train_files": Successor("tasks.set", "a set of tasks.suite"),
    "data.val_files": Successor("tasks.eval_set", "a set of tasks.suite"),
    "data.train_batch_size": Successor("trainer.tasks_per_step"),
    "data.rollout_batch_size": Successor("trainer.tasks_per_step"),
    "data.val_batch_size": Successor(None, "an evaluation runs on all env.desktops"),
    "data.max_prompt_length": Successor("learner.max_row_tokens", "of the whole row, answers included"),
    "data.max_response_length": Successor("engine.max_new_tokens", "of one turn"),
    "data.min_pixels": Successor("agent.min_pixels"),
    "data.max_pixels": Successor("agent.max_pixels"),
    "data.seed": Successor("run.seed"),
    "data.shuffle": Successor(None, "the order is always drawn from run.seed"),
    # algorithm
    "algorithm.adv_estimator": Successor("learner.advantage", "without GAE and ReMax"),
    "algorithm.disable_kl": Successor("learner.kl", "off"),
    "algorithm.use_kl_loss": Successor("learner.kl", "k1, k2 or k3"),
    "algorithm.kl_coef": Successor("learner.kl_coef"),
    "algorithm.kl_penalty": Successor("learner.kl", "kl is k1, mse is k2, low_var_kl is k3"),
    "algorithm.enable_replay": Successor("replay.rule", "arpo or off"),
    # worker: rollout
    "worker.rollout.n": Successor("rollout.group_size"),
    "worker.rollout.temperature": Successor("engine.temperature"),
    "worker.rollout.top_p": Successor("engine.top_p"),
    "worker.rollout.limit_images": Successor("agent.history_screenshots"),
    "worker.rollout.val_override_config.temperature": Successor("engine.eval_temperature"),
    "worker.rollout.val_override_config.n": Successor("trainer.eval_repeats"),
    "worker.rollout.tensor_parallel_size": Successor(None, "the engine runs in the trainer's process"),
    "worker.rollout.gpu_memory_utilization": Successor(None, "the engine runs in the trainer's process"),
    # worker: actor
    "worker.actor.global_batch_size": Successor("learner.minibatches", _COUNTS_MINIBATCHES),
    "worker.actor.micro_batch_size_per_device_for_update": Successor("learner.max_row_tokens", _PACKED),
    "worker.actor.micro_batch_size_per_device_for_experience": Successor("learner.max_row_tokens", _PACKED),
    "worker.actor.ppo_epochs": Successor("learner.epochs"),
    "worker.actor.max_grad_norm": Successor("learner.grad_clip"),
    "worker.actor.clip_ratio_low": Successor("learner.clip_low"),
    "worker.actor.clip_ratio_high": Successor("learner.clip_high"),
    "worker.actor.clip_ratio_dual": Successor("learner.dual_clip"),
    "worker.actor.optim.lr": Successor("learner.lr"),
    "worker.actor.optim.betas": Successor("learner.betas"),
    "worker.actor.optim.weight_decay": Successor("learner.weight_decay"),
    "worker.actor.optim.lr_warmup_steps": Successor("learner.warmup_steps"),
    "worker.actor.optim.lr_warmup_ratio": Successor("learner.warmup_steps", "optimizer steps, not a share"),
    "worker.actor.model.model_path": Successor("model.path"),
    "worker.actor.model.freeze_vision_tower": Successor("model.freeze_vision"),
    "worker.actor.model.enable_gradient_checkpointing": Successor("model.gradient_checkpointing"),
    "worker.actor.padding_free": Successor(None, "rows are always packed without padding"),
    "worker.actor.ulysses_sequence_parallel_size": Successor(None, "a trajectory is whole on one rank"),
    "worker.actor.fsdp.enable_full_shard": Successor(None, "weights are always sharded over learner.ranks"),
    "worker.actor.fsdp.enable_cpu_offload": Successor("learner.cpu_offload"),
    "worker.actor.fsdp.torch_dtype": Successor("model.dtype"),
    "worker.actor.offload.offload_params": Successor("learner.cpu_offload"),
    "worker.actor.offload.offload_optimizer": Successor("learner.cpu_offload"),
    "worker.actor.optim.strategy": Successor("learner.weights", "adamw is fp32, adamw_bf16 is kahan"),
    # the same in verl's spelling
    "actor_rollout_ref.model.path": Successor("model.path"),
    "actor_rollout_ref.model.enable_gradient_checkpointing": Successor("model.gradient_checkpointing"),
    "actor_rollout_ref.rollout.n": Successor("rollout.group_size"),
    "actor_rollout_ref.rollout.temperature": Successor("engine.temperature"),
    "actor_rollout_ref.rollout.top_p": Successor("engine.top_p"),
    "actor_rollout_ref.actor.ppo_epochs": Successor("learner.epochs"),
    "actor_rollout_ref.actor.ppo_mini_batch_size": Successor("learner.minibatches", _COUNTS_MINIBATCHES),
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": Successor("learner.max_row_tokens", _PACKED),
    "actor_rollout_ref.actor.grad_clip": Successor("learner.grad_clip"),
    "actor_rollout_ref.actor.clip_ratio_low": Successor("learner.clip_low"),
    "actor_rollout_ref.actor.clip_ratio_high": Successor("learner.clip_high"),
    "actor_rollout_ref.actor.clip_ratio_c": Successor("learner.dual_clip"),
    "actor_rollout_ref.actor.optim.lr": Successor("learner.lr"),
    "actor_rollout_ref.actor.optim.weight_decay": Successor("learner.weight_decay"),
    "actor_rollout_ref.actor.optim.lr_warmup_steps": Successor("learner.warmup_steps"),
    # env
    "env.num_envs": Successor("env.desktops"),
    "env.max_steps": Successor("rollout.max_steps"),
    "env.screen_size": Successor("env.screen"),
    "env.provider_name": Successor("env.provider"),
    "env.server_url": Successor("env.url"),
    "env.remote_url": Successor("env.url"),
    # trainer
    "trainer.total_episodes": Successor("trainer.max_steps", "steps, not passes over the tasks"),
    "trainer.total_epochs": Successor("trainer.max_steps", "steps, not passes over the tasks"),
    "trainer.project_name": Successor("run.dir"),
    "trainer.experiment_name": Successor("run.name"),
    "trainer.default_local_dir": Successor("run.dir"),
    "trainer.save_checkpoint_path": Successor("run.dir"),
    "trainer.load_checkpoint_path": Successor("run.resume", "the newest checkpoint is found by itself"),
    "trainer.resume_mode": Successor("run.resume", "true or false"),
    "trainer.save_freq": Successor("trainer.checkpoint_every"),
    "trainer.save_limit": Successor("trainer.keep_checkpoints"),
    "trainer.val_freq": Successor("trainer.eval_every"),
    "trainer.test_freq": Successor("trainer.eval_every"),
    "trainer.val_before_train": Successor("trainer.eval_before"),
    "trainer.val_only": Successor(None, "run `arpo evaluate`"),
    "trainer.n_gpus_per_node": Successor("hardware.gpus"),
    "trainer.nnodes": Successor("learner.ranks", "processes; start them with torchrun on several nodes"),
    "trainer.logger": Successor(None, "metrics are in the run directory's metrics.jsonl"),
}
