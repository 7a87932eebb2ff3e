"""Which code a run was made with.

Invariant: nothing here fails because something is not installed or not there; it is left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import arpo

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "ray", "vllm")
_PATIENCE_S = 10.0


class Git(BaseModel):
    """Of the checkout that the code runs from. dirty: the code differs from the commit."""

    model_config = ConfigDict(extra="forbid")

    commit: str
    dirty: bool


class CodeVersion(BaseModel):
    """`version.json`. git: None when the code is not run from a checkout. packages: those that are installed."""

    model_config = ConfigDict(extra="forbid")

    arpo: str
    git: Git | None
    python: str
    packages: dict[str, str]
    platform: str
    gpus: list[str]


def code_version() -> CodeVersion:
    """Of this process and machine."""
    return CodeVersion(
        arpo=arpo.__version__,
        git=_git(Path(arpo.__file__).parent),
        python=platform.python_version(),
        packages=dict(_installed()),
        platform=platform.platform(),
        gpus=_gpus(),
    )


def _installed() -> list[tuple[str, str]]:
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in _PACKAGES}
    return [(name, one.version) for name, one in found.items() if one is not None]


def _git(package: Path) -> Git | None:
    # a package folder inside somebody else's checkout (a virtual environment) is not tracked there
    if _output("git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _output("git", "-C", str(package), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(package), "status", "--porcelain", "--", ".")
    return None if commit is None or changes is None else Git(commit=commit, dirty=changes != "")


def _gpus() -> list[str]:
    # not torch: asking it would give this process memory on the first GPU
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines() if names else []


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints; None when it is not there or does not succeed."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
