"""Preflight: what cannot work is refused before a model is loaded or a desktop started, with the fix.

Invariant: nothing here loads a model, starts a desktop, sends a request or writes a file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arpo.agent import get_profile
from arpo.config.model import Config
from arpo.protocol.problems import ConfigError
from arpo.replay.dataset import Dataset
from arpo.rollout.engines.openai import KEY_VARIABLE, api_key
from arpo.tasks.model import Task
from arpo.tasks.sets import Suite, load_suite
from arpo.trainer.checks import check, check_training
from arpo.trainer.environment import env_token
from arpo.trainer.fitting import check_memory

# A 24 GB card reports a little less than 24 GiB.
_MEMORY_TOLERANCE = 0.9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. detail: what was found; when not `ok`, what is wrong and the fix, on one line."""

    name: str
    ok: bool
    detail: str = ""


def preflight(config: Config, *, hardware: bool, training: bool = False) -> list[Check]:
    """Look at the settings, at the tasks, at memory and, with `hardware`, at this machine: model, GPUs, desktops, token.

    training: what only an evaluation could do is refused too. Must not be called inside a running event loop.
    """
    problems = [*(check_training(config) if training else ()), *check(config)]
    served = config.engine.kind == "openai"
    memory = [] if served else [_checked("memory", lambda: check_memory(config))]
    looked = [*_settings(problems), *_tasks(config, served=served), *memory]
    return [*looked, *(_machine(config, served=served) if hardware else ())]


def raise_if_failed(checks: Sequence[Check]) -> None:
    """Raise ConfigError with the first failed check on one line and the number of others."""
    failed = [one for one in checks if not one.ok]
    if failed:
        more = f" (and {len(failed) - 1} more; `arpo doctor` lists all)" if len(failed) > 1 else ""
        raise ConfigError(f"{failed[0].detail}{more}")


def _settings(problems: Sequence[str]) -> Iterator[Check]:
    if not problems:
        yield Check("settings", True, "fit together")
    for problem in problems:
        yield Check("settings", False, problem)


def _tasks(config: Config, *, served: bool) -> Iterator[Check]:
    wanted = config.tasks
    try:
        suite = load_suite(wanted.suite)
        tasks = suite.task_set(wanted.set)
        evaluated = suite.task_set(wanted.eval_set) if wanted.eval_set else tasks
    except ConfigError as error:
        yield Check("tasks", False, str(error))
        return
    found = f"{len(tasks)} to train on, {len(evaluated)} to evaluate on ({wanted.suite}/{wanted.set})"
    yield Check("tasks", True, found)
    per_step = config.trainer.tasks_per_step
    if per_step > len(tasks) and not served:
        yield Check(
            "batch",
            False,
            f"trainer.tasks_per_step={per_step} is larger than the {len(tasks)} tasks of {wanted.suite}/{wanted.set}; "
            f"fix: trainer.tasks_per_step={len(tasks)} or a larger tasks.set",
        )
    provider = config.env.provider
    if config.env.url is None and suite.providers and provider not in suite.providers:
        yield Check(
            "provider",
            False,
            f"env.provider={provider} cannot run suite {wanted.suite}, which is made for "
            f"{' and '.join(suite.providers)}; fix: env.provider={suite.providers[0]} or another tasks.suite",
        )
    if config.imitation.enabled and not served:
        dataset = config.imitation.dataset
        look = partial(_dataset, dataset) if dataset else partial(_demonstrations, config, suite, tasks)
        yield _checked("demonstrations", look)


def _dataset(folder: Path) -> str:
    return f"{len(Dataset(folder).manifest.trajectories)} to imitate from {folder}"


def _demonstrations(config: Config, suite: Suite, tasks: Sequence[Task]) -> str:
    agent, screen, max_steps = config.agent, config.env.screen, config.rollout.max_steps
    profile = get_profile(agent.profile, min_pixels=agent.min_pixels, max_pixels=agent.max_pixels)
    for task in tasks:
        demonstration = suite.demonstration(task)
        name = f"the demonstration of {task.domain}/{task.id}"
        if demonstration is None:
            raise ConfigError(
                f"imitation.enabled needs {name}, which does not exist; "
                f"fix: add demos/{task.domain}/{task.id}.json or set imitation.enabled=false"
            )
        if not demonstration.fits(screen):
            raise ConfigError(
                f"{name} is made for another screen than env.screen={list(screen)}; "
                f"fix: env.screen='{list(demonstration.screen)}'"
            )
        if len(demonstration.turns) > max_steps:
            raise ConfigError(
                f"{name} has {len(demonstration.turns)} turns, more than rollout.max_steps={max_steps}; "
                f"fix: rollout.max_steps={len(demonstration.turns)}"
            )
        try:
            for turn in demonstration.turns:
                profile.render(turn.thought, turn.actions, screen)
        except ConfigError as error:
            raise ConfigError(f"{name} cannot be imitated: {error}; fix: a tasks.set without it") from error
    return f"{len(tasks)} to imitate"


def _machine(config: Config, *, served: bool) -> Iterator[Check]:
    if served:
        yield _checked("model", lambda: _served_model(config))
    else:
        yield _checked("model", lambda: _model(config))
        yield _checked("engine", lambda: _engine(config))
        yield _checked("trackers", lambda: _trackers(config))
        yield _checked("gpus", lambda: _gpus(config))
        yield _checked("launcher", lambda: _launcher(config))
    yield _checked("desktops", lambda: _desktops(config))


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except ConfigError as error:
        return Check(name, False, str(error))


def _model(config: Config) -> str:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed; fix: pip install 'arpo[train]'")
    path = config.model.path
    if path == "tiny":
        return "tiny, made on the spot"
    folder = Path(path)
    if (folder / "config.json").is_file():
        return f"folder {path}"
    if folder.is_dir():
        raise ConfigError(f"model.path={path} has no config.json; fix: name a Hugging Face model folder")
    if folder.is_absolute() or path.startswith((".", "~")) or len(folder.parts) != 2:
        raise ConfigError(
            f"model.path={path} does not exist; fix: a folder, a hub name (owner/model) or `tiny`"
        )
    return f"{path} from the hub or its cache"


def _trackers(config: Config) -> str:
    for name in config.run.trackers:
        if importlib.util.find_spec(name) is None:
            extra = "train" if name == "tensorboard" else name
            raise ConfigError(
                f"run.trackers has {name}, which is not installed; fix: pip install 'arpo[{extra}]', "
                "or run.trackers without it"
            )
    return ", ".join(config.run.trackers) or "none wanted"


def _engine(config: Config) -> str:
    kind = config.engine.kind
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine.kind=vllm needs vLLM, which is not installed; fix: pip install 'arpo[vllm]'"
        )
    return kind


def _served_model(config: Config) -> str:
    section = config.engine.openai
    key = "with an API key" if api_key(section) else f"without an API key ({KEY_VARIABLE} is not set)"
    return f"{section.model} on {section.url}, {key} (not asked)"


def _launcher(config: Config) -> str:
    section = config.launcher
    if section.kind == "local":
        return f"local, {config.learner_ranks} learner rank(s)"
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("launcher.kind=ray, but ray is not installed; fix: pip install 'arpo[ray]'")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "launcher.kind=ray starts the ranks itself, but torchrun has started this process; "
            "fix: `arpo train` without torchrun, or launcher.kind=local"
        )
    where = section.address or os.environ.get("RAY_ADDRESS") or "a cluster of its own"
    shared = " on their GPUs" if config.colocated and config.hardware.gpus else ""
    return f"ray on {where}: {config.learner_ranks} learner rank(s), {section.engines} engine(s){shared}"


def _gpus(config: Config) -> str:
    wanted = config.hardware.gpus
    if wanted == 0:
        return "none wanted"
    if config.launcher.kind == "ray":
        return f"{wanted} wanted of the Ray cluster, which is asked at the start"
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"hardware.gpus={wanted} cannot be looked for without torch")
    import torch

    found = torch.cuda.device_count()
    if found < wanted:
        raise ConfigError(
            f"hardware.gpus={wanted}, but this machine has {found}; fix: hardware.gpus={found} and settings that fit, "
            "or --no-hardware to check for another machine"
        )
    memory = min(torch.cuda.get_device_properties(index).total_memory for index in range(wanted)) / 2**30
    if memory < _MEMORY_TOLERANCE * config.hardware.gpu_memory_gib:
        raise ConfigError(
            f"hardware.gpu_memory_gib={config.hardware.gpu_memory_gib}, but a GPU of this machine has {memory:.0f}; "
            f"fix: hardware.gpu_memory_gib={memory:.0f} and settings that fit"
        )
    return f"{found} with {memory:.0f} GiB or more"


def _desktops(config: Config) -> str:
    env = config.env
    if env.url is None:
        return _own_desktops(config)
    env_token(env)
    return f"on {env.url} (not asked)"


def _own_desktops(config: Config) -> str:
    env = config.env
    options: dict[str, object] = dict(env.provider_options)
    if env.provider == "xvfb":
        options["sandbox"] = env.sandbox
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not installed, which an env-server of one's own needs; "
            "fix: pip install 'arpo[env-server]', or env.url of an env-server elsewhere"
        )
    try:
        # the env-server is a process of its own; this only asks the provider whether it could run here
        from arpo.providers.registry import make_provider

        provider = make_provider(
            env.provider,
            screen=env.screen,
            desktops=env.desktops,
            start_timeout_s=env.timeouts.start_s,
            **options,
        )
        asyncio.run(provider.preflight())
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the {env.provider} provider needs {error.name}; fix: pip install 'arpo[env-server]'"
        ) from error
    return f"{env.desktops} {env.provider}"
