"""What an evaluation is of. Episodes of two evaluations may stand in one result only if this is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from arpo.checkpoints.folders import Checkpoint
from arpo.checkpoints.manifest import MANIFEST
from arpo.config.model import Config
from arpo.tasks.model import Task

_WEIGHTS = (".safetensors", ".bin")


class TaskIdentity(BaseModel):
    """A task by name and by the sha256 of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domain: str
    task_id: str
    sha256: str

    @classmethod
    def of(cls, task: Task) -> TaskIdentity:
        """The content is the JSON that an env-server gets."""
        content = json.dumps(task.wire(), sort_keys=True, ensure_ascii=False).encode()
        return cls(domain=task.domain, task_id=task.id, sha256=hashlib.sha256(content).hexdigest())


class Identity(BaseModel):
    """step: of the training that made the policy. settings: by dotted key, all on which a score may depend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    step: int
    policy: str
    policy_version: int
    tasks: list[TaskIdentity]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, config: Config, tasks: Sequence[Task], *, label: str, step: int, policy: str, policy_version: int
    ) -> Identity:
        """policy: in words, other words for another policy."""
        return cls(
            label=label,
            step=step,
            policy=policy,
            policy_version=policy_version,
            tasks=[TaskIdentity.of(task) for task in tasks],
            settings=_settings(config),
        )

    def differences(self, other: Identity) -> list[str]:
        """In what another one differs, as `key: this → that`."""
        pairs = [("policy", self.policy, other.policy), ("step", self.step, other.step)]
        pairs.append(("policy version", self.policy_version, other.policy_version))
        keys = dict.fromkeys([*self.settings, *other.settings])
        pairs += [(key, self.settings.get(key), other.settings.get(key)) for key in keys]
        found = [f"{name}: {mine} → {theirs}" for name, mine, theirs in pairs if mine != theirs]
        if self.tasks != other.tasks:
            changed = len(set(self.tasks) ^ set(other.tasks))
            found.append(
                f"tasks: {len(self.tasks)} → {len(other.tasks)}, {changed} of other names or content"
            )
        return found


def checkpoint_identity(checkpoint: Checkpoint) -> str:
    """A checkpoint by its manifest, which has the sha256 of every file."""
    return f"{checkpoint.path.name} sha256 {_digest((checkpoint.path / MANIFEST).read_bytes())}"


def model_identity(config: Config) -> str:
    """`model.path`: a hub's model by its name, `tiny` by its seed, a folder by its JSON files and sizes."""
    path = config.model.path
    if path == "tiny":
        return f"tiny, seed {config.run.seed}"
    folder = Path(path)
    if not folder.is_dir():
        return path
    content = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            content.update(f"{file.name} ".encode() + file.read_bytes())
        elif file.suffix in _WEIGHTS:
            content.update(f"{file.name} {file.stat().st_size} ".encode())
    return f"{folder.resolve()} sha256 {content.hexdigest()[:16]}"


def _settings(config: Config) -> dict[str, Any]:
    agent, engine, env = config.agent, config.engine, config.env
    settings: dict[str, Any] = {
        "run.seed": config.run.seed,
        "rollout.max_steps": config.rollout.max_steps,
        **{f"agent.{name}": value for name, value in agent.model_dump(mode="json").items()},
        "engine.kind": engine.kind,
        "engine.eval_temperature": engine.eval_temperature,
        "engine.top_p": engine.top_p,
        "engine.max_new_tokens": engine.max_new_tokens,
    }
    if env.url is None:  # a running env-server may have moved, and its desktops are its own business
        settings |= {"env.provider": env.provider, "env.screen": list(env.screen)}
    if engine.kind == "openai":
        settings["engine.openai.parameters"] = engine.openai.parameters
    else:
        settings["model.dtype"] = config.model.dtype
    return settings


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
