"""The configuration's sections. Every field says what it is for; unknown keys are refused.

The whole is `arpo.config.model.Config`; files and overrides are read by `arpo.config.load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Side = Annotated[int, Field(ge=64, le=16_384)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RunSection(Section):
    """The run as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "arpo"
    """Run name; the run directory is `<dir>/<name>`."""
    dir: UserPath = Path("runs")
    """Where run directories are made."""
    seed: int = 0
    """Seed of every random choice: task order, sampling, initial weights."""
    resume: bool = True
    """Go on from the newest complete checkpoint of the run directory, if there is one."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "swanlab"], ...] = ("tensorboard",)
    """Where metrics go besides `metrics.jsonl`; `docs/training.md#trackers` says what each needs. `[]`: nowhere."""


class Timeouts(Section):
    """Seconds after which an operation of the env-server counts as failed, each with its own problem code."""

    start_s: Seconds = 120.0
    """Starting a guest."""
    reset_s: Seconds = 120.0
    """A clean guest in place of a used one."""
    setup_s: Seconds = 300.0
    """The task's setup steps and the wait for quiet pixels after them."""
    step_s: Seconds = 120.0
    """One step: its actions and the wait for quiet pixels."""
    evaluate_s: Seconds = 300.0
    """The task's evaluators."""


class EnvSection(Section):
    """Desktops: an env-server started with the run (`url` unset) or one that is already there (`url` set)."""

    provider: Literal["xvfb", "simulated", "vmware", "docker", "qemu"] = "xvfb"
    """Provider of the embedded env-server. Ignored when `url` is set."""
    provider_options: dict[str, str | int | float | bool] = {}
    """The provider's own options, e.g. `{vm_path: ~/vms/ubuntu.vmx}`; `docs/desktops.md` lists them."""
    url: str | None = None
    """URL of a running env-server, e.g. http://arpo-env:18082. Unset: start one for this run."""
    token_file: UserPath | None = None
    """File with the bearer token for `url`."""
    desktops: Positive = 2
    """How many desktops to use at once."""
    screen: tuple[Side, Side] = (1280, 720)
    """Screen size in pixels, width and height."""
    sandbox: Literal["auto", "none"] = "auto"
    """xvfb: `auto` isolates every desktop with namespaces, or refuses to run; `none` does not isolate."""
    allow_addresses: tuple[str, ...] = ()
    """What the URLs in tasks may reach besides public addresses: host names and networks, e.g. `[10.0.0.0/8]`."""
    idle_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """A session without a request for this long is released."""
    outage_s: Seconds | None = 120.0
    """How long the run waits for an env-server that is gone to come back before it fails; it can be resumed. With `url`,
    sessions wait as long and go on where they were, and so does the run's start; null: for ever (a laptop that sleeps)."""
    timeouts: Timeouts = Timeouts()
    """Limits of single operations on the embedded env-server."""


class TasksSection(Section):
    """What to train and evaluate on."""

    suite: str = "local"
    """A built-in suite (`local`, `simulated`) or the path of a folder with `examples/<domain>/<id>.json`."""
    set: str = "train"
    """Name of a set file in the suite (`<set>.json`, `{domain: [ids]}`) or the path of one."""
    eval_set: str | None = None
    """Set used for validation; unset: the training set."""


class AgentSection(Section):
    """How the policy is spoken to and how its text becomes actions."""

    profile: Literal["uitars-1.5", "uitars-1"] = "uitars-1.5"
    """Prompt template, action grammar and coordinate convention."""
    prompt: Literal["full", "short"] = "full"
    """`full`: the prompt UI-TARS was trained under; `short`: the instruction alone, for tiny policies."""
    max_format_errors: Positive = 1
    """An episode ends after this many turns whose text is no action."""
    history_screenshots: Positive = 15
    """How many screenshots a row may hold; must be at least `rollout.max_steps`. With `engine.kind=openai` those of the
    latest turns are shown."""
    max_pixels: Positive = 2_116_800
    """Screenshots are scaled down to at most this many pixels before the model sees them."""
    min_pixels: Positive = 3_136
    """Screenshots are scaled up to at least this many pixels."""


class LoraSection(Section):
    """Low-rank adapters in place of full training."""

    rank: NonNegative = 0
    """Rank of the adapters on every linear layer of the language model; 0: train the model itself."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs that is dropped while training."""


class ModelSection(Section):
    """The policy model."""

    path: str = "tiny"
    """`tiny` (a 1 M parameter Qwen2.5-VL made on the spot), a local folder, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the model computes in; how trained weights are kept is `learner.weights`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: cuda when there is one."""
    freeze_vision: bool = True
    """Do not train the vision tower."""
    gradient_checkpointing: bool = False
    """Trade compute for memory: layers are computed again in the backward pass."""
    lora: LoraSection = LoraSection()
    """Train adapters instead of the weights."""


class VllmSection(Section):
    """The `vllm` engine: where it computes, what it may keep, how weights reach it. `docs/engines.md` explains."""

    tensor_parallel: Positive = 1
    """GPUs that one engine is spread over; without GPUs, processes."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that the engine takes; smaller with `colocate`, beside what the learner keeps."""
    kv_cache_gib: Annotated[float, Field(ge=0)] = 0.0
    """Memory of the key-value cache; 0: what `gpu_memory_utilization` leaves for it (on the CPU, of the host's)."""
    max_model_len: NonNegative = 0
    """Tokens of the longest prompt and reply; 0: `learner.max_row_tokens`, or the model's own limit if that is less."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: a quicker start, slower sampling."""
    colocate: bool = False
    """On the learner's GPUs, in turns: the engine's memory is given away while the learner works, weights included."""
    prefix_caching: bool = True
    """Remember key-value blocks of prompts: each step of an episode repeats what came before."""
    mm_cache_gib: Annotated[float, Field(ge=0)] = 4.0
    """Memory for preprocessed pictures."""
    weight_transfer: Literal["auto", "nccl", "ipc", "gloo", "reload"] = "auto"
    """`nccl`; `ipc` (same GPU); `gloo` (CPU); `reload`: through a file in memory; `auto`: the first that fits."""
    push_timeout_s: Seconds = 300.0
    """Longest time that one engine may take for new weights. With launcher.kind=ray it is replaced after that."""


class OpenAISection(Section):
    """The `openai` engine: a model behind any OpenAI-compatible server. Only `arpo evaluate` can use it."""

    url: str | None = None
    """Base URL, to which `/chat/completions` is appended, e.g. http://127.0.0.1:8000/v1; of a bare host, its `/v1`."""
    model: str | None = None
    """Name of the model as the server knows it."""
    api_key_file: UserPath | None = None
    """File with the API key alone; unset: the environment's OPENAI_API_KEY, and without that no key is sent."""
    parameters: dict[str, str | int | float | bool | None] = {}
    """More fields of a request, or others than it would have; null leaves one out:
    `{max_completion_tokens: 512, max_tokens: null}`."""
    connect_timeout_s: Seconds = 10.0
    """Until a connection stands."""
    timeout_s: Seconds = 300.0
    """Until the server has answered; it answers when the whole turn is sampled."""
    outage_s: Annotated[float, Field(ge=0)] = 300.0
    """How long a request is sent again while the server is overloaded, failing or gone; then its episode is invalid."""


class EngineSection(Section):
    """Sampling."""

    kind: Literal["hf", "vllm", "openai"] = "hf"
    """`hf`: transformers in the trainer's process; `vllm`: continuous batching and caches (`arpo[vllm]`); `openai`: a model
    server, for evaluation only."""
    max_new_tokens: Positive = 512
    """Longest assistant turn."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Training temperature."""
    eval_temperature: Annotated[float, Field(ge=0)] = 0.6
    """Evaluation temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    max_batch: Positive = 16
    """Largest number of prompts sampled together."""
    image_cache_gib: Annotated[float, Field(ge=0)] = 0.5
    """Memory for preprocessed pictures in the `hf` engine; one of 1920×1080 takes 0.05 GiB."""
    vllm: VllmSection = VllmSection()
    """Settings of the `vllm` kind."""
    openai: OpenAISection = OpenAISection()
    """Settings of the `openai` kind."""


class RolloutSection(Section):
    """Episodes and groups."""

    group_size: Annotated[int, Field(ge=1)] = 8
    """n: trajectories of one task that share an advantage baseline."""
    max_steps: Positive = 15
    """Assistant turns an episode may take."""
    max_staleness: NonNegative = 0
    """How many policy versions old a trajectory may be when it is learned from, by its oldest token. 0: on-policy, the
    desktops wait while the learner learns; 1 or more: they go on meanwhile, and the learner never waits for them long."""
    max_retries: NonNegative = 3
    """Episodes that are run again because a fault made them invalid, for each place of a group and shared by all of them;
    then the group goes without those places."""
    episode_timeout_s: Seconds = 3600.0
    """An episode that is not over by then counts as a fault of its environment."""
    overdue_factor: Annotated[float, Field(gt=1)] | None = 5.0
    """A step waits for no episode that has taken this many times as long as the median; null: it waits for all."""
    overdue_min_s: Annotated[float, Field(ge=0)] = 60.0
    """And not before its desktop has had this much time: where episodes are short, a busy machine is no hung desktop."""
    early_close_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A group that waits for overdue episodes only goes without them if it has this share of its trajectories; else they
    are run again."""
    oversample: NonNegative = 0
    """Groups rolled out beyond those that a step needs, which takes the first that close. Favours short episodes."""
    refill: NonNegative = 0
    """Groups a step in place of such whose rewards are all equal, and which therefore teach nothing."""
    adaptive_concurrency: bool = True
    """Run fewer episodes than there are desktops while requests queue at the engine."""


class ReplaySection(Section):
    """The buffer of successful trajectories."""

    rule: Literal["arpo", "off"] = "arpo"
    """`arpo`: a stored success takes the place of a failure in a group that failed as a whole."""
    capacity: Positive = 8
    """Stored successes a task; the oldest leaves first."""
    max_trajectories: Positive = 4096
    """Stored successes of all tasks together; the oldest leaves first."""
    success_above: Fraction = 0.1
    """A trajectory whose score is above this is a success."""
    inject_std_below: Annotated[float, Field(ge=0)] = 0.05
    """Inject only into groups whose scores have a smaller standard deviation."""
    inject_mean_below: Annotated[float, Field(ge=0)] = 0.2
    """Inject only into groups whose mean score is smaller."""
    importance: Literal["truncated", "none"] = "truncated"
    """Weight of replayed tokens: `truncated` ratio to the stored log-probs; `none`: as published."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of the truncated importance weight."""


class LearnerSection(Section):
    """Loss and optimizer."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegative = 0
    """Linear warm-up over this many optimizer steps; the first step already has lr/warmup_steps, never 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moments."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """ε_low: the ratio is clipped below 1 - ε_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.3
    """ε_high: the ratio is clipped above 1 + ε_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """c: lower bound c·A of the objective for negative advantages; null switches it off."""
    advantage: Literal["grpo", "rloo", "reinforce++", "reinforce++-baseline", "dr_grpo"] = "grpo"
    """How rewards become advantages; all but `reinforce++` compare within the group."""
    mean: Literal["token", "sequence", "constant"] = "token"
    """What the loss averages over: all tokens; tokens, then sequences; or `mean_constant` tokens a sequence (Dr.GRPO)."""
    mean_constant: Positive = 1024
    """Tokens a sequence counts as with `mean=constant`, however long it is."""
    format_coef: Annotated[float, Field(ge=0)] = 0.5
    """Reward = score + format_coef · format."""
    kl: Literal["off", "k1", "k2", "k3"] = "off"
    """Estimator of the KL divergence from the frozen reference (the policy that training began with) in the loss."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.001
    """Weight of that divergence."""
    importance: Literal["truncated", "none"] = "truncated"
    """Weight of fresh tokens: `truncated` ratio of the learner's probability to the engine's; `none`: 1."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of that weight."""
    logprob_gap_alarm: Annotated[float, Field(gt=0)] = 0.05
    """Alarm when engine and learner log-probs of what the present policy sampled differ by more than this on average."""
    epochs: Positive = 1
    """Passes over a batch of groups."""
    minibatches: Positive = 1
    """Optimizer steps an epoch; the rows are divided evenly."""
    max_row_tokens: Positive = 65_536
    """Tokens of a packed row, which is one forward and backward pass; a longer trajectory is cut."""
    cut: Literal["last_turns", "oldest_screenshots", "skip"] = "last_turns"
    """A trajectory longer than a row loses its last turns, or its oldest screenshots, or is left out."""
    logits_chunk: Positive = 1024
    """Tokens whose logits exist at the same time."""
    weights: Literal["fp32", "kahan"] = "fp32"
    """Trained weights and optimizer state: fp32 (12 bytes a parameter), or bf16 with Kahan summation (10)."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory between uses."""
    ranks: NonNegative = 0
    """Processes that the weights are sharded over; 0: one for each of `hardware.gpus` without an engine actor, or one."""


class ImitationSection(Section):
    """Warm start by imitation of demonstrations."""

    enabled: bool = False
    """Imitate before the first training step (skipped on resume)."""
    dataset: UserPath | None = None
    """A folder from `arpo replay export` to imitate; unset: the tasks' demonstrations are recorded on the desktops."""
    steps: Positive = 200
    """Optimizer steps at most."""
    batch: Positive = 8
    """Demonstrations in one optimizer step."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    target_prob: Fraction = 0.5
    """Stop once the mean probability of sampling a whole demonstration reaches this; 1 never stops early."""
    check_every: Positive = 10
    """Optimizer steps between two looks at that probability."""


class TrainerSection(Section):
    """The loop."""

    max_steps: Positive = 100
    """ARPO steps."""
    tasks_per_step: Positive = 16
    """Groups in one step; at most the number of tasks in the set."""
    checkpoint_every: Positive = 1
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = True
    """Keep besides them the checkpoint with the highest success in an evaluation of this run."""
    grace_s: Seconds = 25.0
    """How long SIGTERM and Ctrl-C wait for a learner step in hand; below what the cluster grants before SIGKILL."""
    eval_before: bool = True
    """Evaluate before the first step."""
    eval_every: NonNegative = 0
    """Steps between evaluations; 0: only before and after."""
    eval_after: bool = True
    """Evaluate after the last step."""
    eval_repeats: Positive = 1
    """Episodes a task in one evaluation."""


class HardwareSection(Section):
    """The machine that the run is meant for; `arpo doctor` compares (`--no-hardware` does not)."""

    gpus: NonNegative = 0
    """GPUs; 0 is a run on the CPU."""
    gpu_memory_gib: Positive = 80
    """Memory of one GPU."""


class LauncherSection(Section):
    """Where the learner's ranks and the engines work. Under torchrun: in the processes that it has started."""

    kind: Literal["local", "ray"] = "local"
    """`local`: in processes of this machine; `ray`: each is an actor of a Ray cluster."""
    address: str | None = None
    """ray: the cluster's head as `host:port`; unset: RAY_ADDRESS, which a Ray job has, else a cluster of the run's own."""
    engines: Positive = 1
    """ray: engine actors; each request goes to the least busy one. With `engine.vllm.colocate` one on each rank's GPU."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """ray: CPUs reserved for each rank and each engine; with `hardware.gpus` each has a GPU too (colocated: half)."""
    start_timeout_s: Seconds = 600.0
    """ray: how long to wait for the cluster to have room for the run, which may first have to add machines."""
    max_restarts: NonNegative = 3
    """ray: lost learner ranks, or an engine, are started again this often in a row, without any progress in between."""
