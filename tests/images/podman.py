"""Containers of the images that `make images` built, run as a cluster would run them; skips that name what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECCOMP = ROOT / "images/env-server/seccomp.json"
_FOLDER = ROOT / ".cache/images"

# A *restricted* securityContext and a read-only root file system, in Podman's words.
RESTRICTED = (
    *("--cap-drop=all", "--security-opt", "no-new-privileges", "--read-only"),
    *(
        word
        for path in ("/tmp", "/home/arpo", "/run/arpo")
        for word in ("--mount", f"type=tmpfs,dst={path},chown=true")
    ),
)
# Besides that, what a desktop's sandbox needs: docs/images.md.
SANDBOX = ("--security-opt", f"seccomp={SECCOMP}", "--security-opt", "unmask=ALL")


def podman(
    *arguments: str, timeout_s: float = 120, stdin: Path = Path(os.devnull)
) -> subprocess.CompletedProcess[str]:
    """Podman with the repository's own settings and storage; returns the finished process."""
    with stdin.open("rb") as given:
        return subprocess.run(
            ["podman", *arguments],
            stdin=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={
                **os.environ,
                "CONTAINERS_CONF": str(_FOLDER / "containers.conf"),
                "CONTAINERS_STORAGE_CONF": str(_FOLDER / "storage.conf"),
            },
            check=False,
        )


def need(image: str, build: str = "make images") -> str:
    """The image's name; skips where it has not been built, or from other sources."""
    if shutil.which("podman") is None:
        pytest.skip("images cannot be run here: podman is not installed; `make images` installs it")
    if not (_FOLDER / "storage.conf").exists() or podman("image", "exists", image).returncode:
        pytest.skip(f"{image} has not been built here: `{build}`")
    stamp = _FOLDER / f"{image.replace('/', '-').replace(':', '-')}.sources"
    built_from = stamp.read_text().strip() if stamp.exists() else ""
    script = ["bash", "scripts/setup_images.sh", "--sources"]
    if (
        built_from
        != subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    ):
        pytest.skip(f"{image} was built from other sources: `{build}`")
    return image


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[str]:
    """A container that runs meanwhile and is removed then; gives its id."""
    # Podman runs health checks only under systemd
    started = podman("run", "--detach", "--no-healthcheck", *options, image, *command)
    assert started.returncode == 0, started.stderr
    container = started.stdout.split()[-1]
    try:
        yield container
    finally:
        podman("rm", "--force", "--time", "0", container)


def logs(container: str) -> str:
    """What a container has written."""
    finished = podman("logs", container)
    return finished.stdout + finished.stderr


def until(condition: object, container: str, seconds: float = 60) -> None:
    """Wait for `condition()`; fails with the container's log."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, logs(container)
        time.sleep(0.3)
