"""Combinations of settings that cannot work. Pure: looks at the configuration alone.

Every message says what is wrong and how to put it right.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from arpo.agent.coordinates import FACTOR, image_tokens
from arpo.config.model import Config

# Control tokens and role names around a picture and around an answer.
_TURN_OVERHEAD = 16
# System message and prompt without the instruction, which is taken to be short beside them.
_PROMPT_TOKENS = {"full": 640, "short": 64}
_VLLM_HOTTEST = 2


def check(config: Config) -> list[str]:
    """What cannot work, one message each; empty when everything fits."""
    if config.engine.kind == "openai":
        return [*_openai(config), *_pixels(config), *_environment(config)]
    return [
        *_batch(config),
        *_refill(config),
        *_screenshots(config),
        *_environment(config),
        *_model(config),
        *(_vllm(config) if config.engine.kind == "vllm" else ()),
        *_launcher(config),
    ]


def check_training(config: Config) -> list[str]:
    """What may work for an evaluation but never for training."""
    if config.engine.kind == "openai":
        return [
            "engine.kind=openai answers in words, and training needs the token ids that were sampled; "
            "fix: engine.kind=hf to train, or `arpo evaluate`"
        ]
    return []


def row_tokens(config: Config, turns: int) -> int:
    """About how many tokens a row of that many turns has at most.

    Raises ValueError for a screen that no policy can be shown.
    """
    screenshot = image_tokens(
        *config.env.screen, min_pixels=config.agent.min_pixels, max_pixels=config.agent.max_pixels
    )
    turn = screenshot + config.engine.max_new_tokens + _TURN_OVERHEAD
    return _PROMPT_TOKENS[config.agent.prompt] + turns * turn


def _batch(config: Config) -> Iterator[str]:
    group_size, learner = config.rollout.group_size, config.learner
    if group_size == 1:
        yield (
            "rollout.group_size=1 gives no advantage, as the baseline is the group's own mean: nothing is learned; "
            "fix: rollout.group_size=2 or more"
        )
    rows = config.trainer.tasks_per_step * group_size
    step = f"trainer.tasks_per_step={config.trainer.tasks_per_step} × rollout.group_size={group_size}"
    if rows % learner.minibatches:
        yield (
            f"learner.minibatches={learner.minibatches} does not divide the {rows} rows of a step ({step}); "
            f"fix: learner.minibatches={_divisor(rows, learner.minibatches)}"
        )


def _refill(config: Config) -> Iterator[str]:
    if config.rollout.refill and config.learner.advantage == "reinforce++":
        yield (
            f"rollout.refill={config.rollout.refill} leaves out groups whose rewards are equal, but "
            "learner.advantage=reinforce++ compares between groups; fix: rollout.refill=0, or another learner.advantage"
        )


def _screenshots(config: Config) -> Iterator[str]:
    agent, max_steps, max_tokens = config.agent, config.rollout.max_steps, config.learner.max_row_tokens
    if agent.history_screenshots < max_steps:
        yield (
            f"agent.history_screenshots={agent.history_screenshots} is less than rollout.max_steps={max_steps}, "
            f"but a row keeps the screenshot of every step; fix: agent.history_screenshots={max_steps}"
        )
    wrong = list(_pixels(config))
    if wrong:
        yield from wrong
        return
    one, whole = row_tokens(config, 1), row_tokens(config, max_steps)
    if one > max_tokens:
        yield (
            f"learner.max_row_tokens={max_tokens} is shorter than one screenshot and one turn (about {one}"
            f" tokens); fix: learner.max_row_tokens={whole}, for a whole episode, or a smaller agent.max_pixels"
        )
    elif whole > max_tokens and config.learner.cut == "skip":
        yield (
            f"learner.max_row_tokens={max_tokens} is shorter than a whole episode of rollout.max_steps={max_steps} "
            f"steps (about {whole} tokens), and learner.cut=skip leaves such episodes out; "
            f"fix: learner.max_row_tokens={whole}, learner.cut=last_turns, or a smaller agent.max_pixels"
        )


def _pixels(config: Config) -> Iterator[str]:
    agent = config.agent
    if agent.min_pixels > agent.max_pixels:
        yield (
            f"agent.min_pixels={agent.min_pixels} is above agent.max_pixels={agent.max_pixels}; "
            f"fix: agent.min_pixels={min(3_136, agent.max_pixels)}"
        )
    elif agent.max_pixels < FACTOR**2:
        yield f"agent.max_pixels={agent.max_pixels} is less than one image token; fix: {FACTOR**2} or more"
    else:
        try:
            row_tokens(config, 1)
        except ValueError as error:
            yield f"env.screen={list(config.env.screen)}: {error}; fix: env.screen='[1280, 720]'"


def _openai(config: Config) -> Iterator[str]:
    section = config.engine.openai
    if section.url is None:
        yield "engine.kind=openai without engine.openai.url; fix: engine.openai.url=http://HOST:8000/v1"
    else:
        parts = urlsplit(section.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            yield (
                f"engine.openai.url={section.url} is no URL of a server; fix: engine.openai.url=http://HOST:8000/v1"
            )
        elif parts.username or parts.password or parts.query or parts.fragment:
            # not shown: it may hold a key
            yield (
                "engine.openai.url has a user, a query or a fragment, which logs would show; "
                "fix: the base URL alone, and the key in engine.openai.api_key_file"
            )
        elif parts.path.rstrip("/").endswith("/chat/completions"):
            base = section.url.rstrip("/").removesuffix("/chat/completions")
            yield f"engine.openai.url={section.url} is not the base URL; fix: engine.openai.url={base}"
    if section.model is None:
        yield "engine.kind=openai without engine.openai.model; fix: engine.openai.model=NAME as the server lists it"


def _environment(config: Config) -> Iterator[str]:
    env = config.env
    if env.url is None:
        return
    if urlsplit(env.url).scheme not in ("http", "https") or not urlsplit(env.url).hostname:
        yield f"env.url={env.url} is no URL of an env-server; fix: env.url=http://HOST:18082"
    if env.token_file is None:
        yield "env.url is set without env.token_file; fix: env.token_file=FILE with the server's token"


def _model(config: Config) -> Iterator[str]:
    model, agent, learner, gpus = config.model, config.agent, config.learner, config.hardware.gpus
    if learner.weights == "kahan" and model.dtype != "bfloat16":
        yield (
            "learner.weights=kahan keeps weights in bf16, but model.dtype=float32; "
            "fix: model.dtype=bfloat16 or learner.weights=fp32"
        )
    if model.lora.rank > 0 and not model.freeze_vision:
        yield "model.lora trains adapters only, but model.freeze_vision=false; fix: model.freeze_vision=true"
    if gpus > 0 and learner.ranks > gpus:
        yield f"learner.ranks={learner.ranks} is more than hardware.gpus={gpus}; fix: learner.ranks={gpus}"
    if learner.cpu_offload and gpus == 0:
        yield "learner.cpu_offload moves weights off a GPU, but hardware.gpus=0; fix: learner.cpu_offload=false"
    if model.device == "cuda" and gpus == 0:
        yield "model.device=cuda needs a GPU, but hardware.gpus=0; fix: hardware.gpus=1 or model.device=auto"
    if model.device == "cpu" and gpus > 0:
        yield f"model.device=cpu uses none of hardware.gpus={gpus}; fix: hardware.gpus=0 or model.device=auto"
    if "ui-tars" in model.path.lower():
        profile = "uitars-1.5" if "1.5" in model.path else "uitars-1"
        if agent.profile != profile:
            yield (
                f"agent.profile={agent.profile} is the wrong coordinate convention for {model.path}; "
                f"fix: agent.profile={profile}"
            )


def _vllm(config: Config) -> Iterator[str]:
    engine, vllm, gpus = config.engine, config.engine.vllm, config.hardware.gpus
    method = f"engine.vllm.weight_transfer={vllm.weight_transfer}"
    for name, temperature in (
        ("temperature", engine.temperature),
        ("eval_temperature", engine.eval_temperature),
    ):
        if temperature > _VLLM_HOTTEST:
            yield (
                f"engine.{name}={temperature} is above {_VLLM_HOTTEST}, which vLLM refuses; "
                f"fix: engine.{name}={_VLLM_HOTTEST}"
            )
    if gpus and gpus % vllm.tensor_parallel:
        yield (
            f"engine.vllm.tensor_parallel={vllm.tensor_parallel} does not divide hardware.gpus={gpus}; "
            f"fix: engine.vllm.tensor_parallel={_divisor(gpus, vllm.tensor_parallel)}"
        )
    if not gpus and vllm.weight_transfer in ("nccl", "ipc"):
        yield f"{method} needs GPUs, but hardware.gpus=0; fix: engine.vllm.weight_transfer=auto"
    if vllm.weight_transfer == "nccl" and vllm.colocate:
        yield f"{method} needs a GPU for each side, but engine.vllm.colocate=true; fix: engine.vllm.weight_transfer=ipc"
    if vllm.weight_transfer == "ipc" and gpus and not vllm.colocate:
        yield f"{method} needs both sides on one GPU, but engine.vllm.colocate=false; fix: engine.vllm.weight_transfer=nccl"
    if vllm.weight_transfer == "ipc" and vllm.tensor_parallel > 1:
        yield (
            f"{method} reaches the sender's own GPU, but engine.vllm.tensor_parallel={vllm.tensor_parallel}; "
            "fix: engine.vllm.weight_transfer=reload"
        )
    try:
        whole = row_tokens(config, config.rollout.max_steps)
    except ValueError:
        return  # said already
    if 0 < vllm.max_model_len < whole:
        yield (
            f"engine.vllm.max_model_len={vllm.max_model_len} is shorter than a whole episode of "
            f"rollout.max_steps={config.rollout.max_steps} steps (about {whole} tokens); "
            f"fix: engine.vllm.max_model_len={whole}"
        )


def _launcher(config: Config) -> Iterator[str]:
    launcher, learner, gpus = config.launcher, config.learner, config.hardware.gpus
    if launcher.kind == "local":
        if launcher.engines > 1:
            yield f"launcher.engines={launcher.engines} needs launcher.kind=ray; fix: launcher.engines=1"
        if launcher.address is not None:
            yield f"launcher.address={launcher.address} needs launcher.kind=ray; fix: launcher.kind=ray"
        return
    if launcher.address is not None and "://" in launcher.address:
        yield (
            f"launcher.address={launcher.address} is for Ray's client, which keeps the driver off the cluster; "
            "fix: launcher.address=HOST:6379, or submit a job"
        )
    if config.colocated:
        yield from _shared(config)
        return
    wanted = config.learner_ranks + launcher.engines * config.engine_gpus
    if 0 < gpus < wanted and learner.ranks <= gpus:
        yield (
            f"{config.learner_ranks} learner ranks and launcher.engines={launcher.engines} have GPUs of their own "
            f"with launcher.kind=ray, {wanted} in all, but hardware.gpus={gpus}; fix: hardware.gpus={wanted} or "
            "fewer of them"
        )


def _shared(config: Config) -> Iterator[str]:
    """Engines on the ranks' GPUs."""
    engines, ranks, parallel = (
        config.launcher.engines,
        config.learner_ranks,
        config.engine.vllm.tensor_parallel,
    )
    where = "with launcher.kind=ray and engine.vllm.colocate=true an engine is on the GPU of one learner rank"
    if parallel > 1:
        yield (
            f"{where}, but engine.vllm.tensor_parallel={parallel}; fix: engine.vllm.tensor_parallel=1 "
            "or engine.vllm.colocate=false"
        )
    if engines > ranks:
        yield f"{where}, but launcher.engines={engines} and there are {ranks} ranks; fix: launcher.engines={ranks}"


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is no larger than another."""
    return next(candidate for candidate in range(min(number, at_most), 0, -1) if number % candidate == 0)
