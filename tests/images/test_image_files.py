"""What the images are built from: no build is needed to see that it is all there, pinned and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
NAMES = [path.parent.name for path in DOCKERFILES]
EXTRAS = {"env-server": ("env-server", "telemetry"), "trainer": ("train", "ray", "vllm", "telemetry")}


def instructions(path: Path) -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    return [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]


def copied(path: Path) -> Iterator[str]:
    for line in instructions(path):
        if line.startswith("COPY ") and "--from=" not in line:
            words = [word for word in line.split()[1:] if not word.startswith("--")]
            yield from words[:-1]


def left_out(path: str) -> bool:
    """Whether .dockerignore leaves a file out, by Docker's rules for the patterns that ours has: the last match counts."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        above = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
        name = pattern.removeprefix("**/")
        found = [
            name_above.rpartition("/")[2] if pattern.startswith("**/") else name_above for name_above in above
        ]
        if any(fnmatch(entry, name) for entry in found):
            out = not line.startswith("!")
    return out


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=NAMES)
def test_what_is_copied_exists_and_is_not_ignored(dockerfile: Path) -> None:
    for source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        for file in tracked(source):
            assert not left_out(file), file


def test_nothing_else_is_sent_to_a_build() -> None:
    for path in (
        "tests/conftest.py",
        ".git/config",
        ".cache/x",
        "runs/a/config.yaml",
        "src/arpo/__pycache__/a.pyc",
        "env.token",
    ):
        assert left_out(path), path


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=NAMES)
def test_an_image_runs_as_an_ordinary_user_and_takes_its_base_as_an_argument(dockerfile: Path) -> None:
    lines = instructions(dockerfile)
    assert lines[0] == "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim"
    assert any("--uid 10001" in line and "--gid 10001" in line for line in lines)
    final = [line for line in lines if line.startswith(("FROM", "USER"))]
    stages = {
        line.split(" AS ")[-1]: following for line, following in zip(final, [*final[1:], ""], strict=True)
    }
    for stage in ("tunnel", "server", "xvfb") if "env-server" in str(dockerfile) else ("FROM python",):
        assert stages[stage] == "USER 10001:10001", stage
    assert not any(line.startswith("ENV") and re.search("TOKEN|PASSWORD|SECRET", line) for line in lines)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=NAMES)
def test_every_image_has_arpo_as_a_layer_of_its_own(dockerfile: Path) -> None:
    from_builder = [line for line in instructions(dockerfile) if line.startswith("COPY --from=builder")]
    assert from_builder
    assert set(from_builder) == {"COPY --from=builder /out /"}  # nothing else there has arpo in it


@pytest.mark.parametrize("name", EXTRAS)
def test_the_lock_has_every_requirement_at_the_version_that_was_tested(name: str) -> None:
    lock, tested = pins(ROOT / "images" / name / "requirements.lock"), pins(ROOT / "constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS[name]:
        wanted += project["optional-dependencies"].get(extra, [])
    for requirement in map(Requirement, wanted):
        package = canonicalize_name(requirement.name)
        assert package in lock, f"{package}: python scripts/lock_images.py {name}"
        assert requirement.specifier.contains(lock[package]), requirement
    assert {package: lock[package] for package in lock.keys() & tested.keys()} == {
        package: tested[package] for package in lock.keys() & tested.keys()
    }


def test_the_lock_leaves_to_torch_what_its_cuda_build_pins() -> None:
    lock = pins(ROOT / "images" / "trainer" / "requirements.lock")
    assert [name for name in lock if name.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_the_seccomp_profile_adds_to_a_strict_one_only_what_a_sandbox_calls() -> None:
    profile = json.loads((ROOT / "images/env-server/seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    *strict, added = profile["syscalls"]
    assert set(added["names"]) == {
        *("chroot", "clone", "clone3", "mount", "pivot_root", "sethostname", "umount2", "unshare"),
    }
    allowed = {name for entry in strict for name in entry["names"]}
    assert not allowed & {
        *added["names"],
        "bpf",
        "setns",
        "keyctl",
        "kexec_load",
        "init_module",
        "open_by_handle_at",
    }
