"""Which code a run was made with: from a checkout, changed or not, and from none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import arpo

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
FILES = ("__init__.py", "trainer/__init__.py", "trainer/version.py")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def version(folder: Path, **env: str) -> dict[str, Any]:
    """What the copy of the package in a folder says of itself."""
    code = "from arpo.trainer.version import code_version; print(code_version().model_dump_json())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **env},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_commit_and_changes_of_the_checkout_and_nothing_of_somebody_elses(tmp_path: Path) -> None:
    package = tmp_path / "arpo"
    for name in FILES:
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(Path(arpo.__file__).parent / name, package / name)
    assert version(tmp_path)["git"] is None, "no checkout"
    git(tmp_path, "init", "-q")
    (tmp_path / "other").touch()
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "of a project that has the package in its environment")
    assert version(tmp_path)["git"] is None

    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "ours")
    clean = version(tmp_path)
    assert clean["git"] == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert clean["packages"]["torch"]
    assert clean["arpo"] == arpo.__version__
    (package / "new.py").touch()
    assert version(tmp_path)["git"]["dirty"] is True
    assert version(tmp_path, PATH="/nonexistent")["git"] is None, "git is not there"
