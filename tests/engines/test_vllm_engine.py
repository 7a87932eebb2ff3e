"""The vllm engine, for real, in an environment that has vLLM: `make vllm` makes one with its CPU build."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from arpo.config.load import load_config
from arpo.protocol.problems import ConfigError
from arpo.rollout.engines.make import make_engine
from policy_kit import tiny_folder

ROOT = Path(__file__).parent.parent.parent
VLLM_PYTHON = ROOT / ".cache" / "vllm-venv" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (VLLM_PYTHON.parent.parent / ".arpo-setup").exists(),
    reason="no vLLM here; `make vllm` installs its CPU build",
)
@pytest.mark.parametrize(
    "file",
    [
        "engines/vllm_conformance.py",
        pytest.param("engines/vllm_only.py", marks=pytest.mark.long),
        pytest.param("engines/vllm_sender.py", marks=pytest.mark.long),
        pytest.param("engines/vllm_on_ray.py", marks=pytest.mark.long),
        pytest.param("engines/vllm_colocated.py", marks=pytest.mark.long),
        pytest.param("e2e/vllm_train.py", marks=pytest.mark.long),
        pytest.param("e2e/vllm_in_turns.py", marks=pytest.mark.long),
    ],
)
def test_the_vllm_engine(file):
    arguments = [
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--durations=5",
        "--timeout=600",
        f"tests/{file}",
    ]
    done = subprocess.run(
        [VLLM_PYTHON, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=840,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_engine_names_the_fix():
    config = load_config(None, ["engine.kind=vllm"])
    with pytest.raises(ConfigError, match=r"pip install 'arpo\[vllm\]'"):
        make_engine(config, None, str(tiny_folder()), weights=True, policy_version=0)
