"""The env-server's image in a container with as few rights as a cluster would give it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from otlp_collector import Collector, collector
from PIL import Image
from podman import RESTRICTED, ROOT, SANDBOX, SECCOMP, logs, need, podman, running, until

from arpo.client import EnvClient
from arpo.protocol.actions import Press, Type
from arpo.telemetry import names

IMAGE = "localhost/arpo-env-server:xvfb"

# The desktop's own limit on processes is asked for from inside.
TASK = {
    "id": "make-folder",
    "instruction": "Make a folder called reports in the home folder.",
    "config": [
        {"type": "launch", "parameters": {"command": ["xterm"]}},
        {"type": "activate_window", "parameters": {"window_name": "xterm"}},
    ],
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": ["cat", "/home/user/reports/tasks"]},
        "expected": {"type": "rule", "rules": {"expected": "4096\n"}},
    },
}


@pytest.fixture(scope="module")
def image() -> str:
    return need(IMAGE)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def strict_profile(path: Path) -> str:
    """Our profile without what it adds for sandboxes: what containerd's default leaves to a container without rights."""
    profile = json.loads(SECCOMP.read_text())
    no_new_namespace = {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    profile["syscalls"][-1] = {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_new_namespace]}
    path.write_text(json.dumps(profile))
    return str(path)


@pytest.mark.parametrize(
    ("profile", "fix"),
    [
        ("default", "images/env-server/seccomp.json"),
        ("strict", "images/env-server/seccomp.json"),
        ("ours", "procMount: Unmasked"),
    ],
)
def test_without_what_the_sandbox_needs_the_server_says_what_to_allow(
    image: str, profile: str, fix: str, tmp_path: Path
) -> None:
    files = {"strict": strict_profile(tmp_path / "seccomp.json"), "ours": str(SECCOMP)}
    options = ["--security-opt", f"seccomp={files[profile]}"] if profile in files else []
    finished = podman("run", "--rm", "--network", "none", *RESTRICTED, *options, image)
    assert finished.returncode == 2, finished.stderr
    assert "refuses a sandbox" in finished.stderr
    assert fix in finished.stderr


def test_a_desktop_in_the_container_is_leased_acted_on_scored_and_drained(image: str) -> None:
    asyncio.run(_lease_act_score_drain(image))


async def _lease_act_score_drain(image: str) -> None:
    port = free_port()
    command = ("--host", "127.0.0.1", "--port", str(port), "--provider", "xvfb")
    with (
        collector() as got,
        running(
            image, *RESTRICTED, *SANDBOX, "--network", "host", *exporting_to(got), command=command
        ) as container,
    ):
        until(lambda: "listening on" in logs(container) or "error:" in logs(container), container)
        said = podman(
            "exec", container, "sh", "-c", "id -u; cat ~/.config/arpo/env-server.token"
        ).stdout.split()
        assert said[0] == "10001", logs(container)
        token = next(word for word in said[1:] if len(word) > 30)
        assert token not in logs(container)

        async with EnvClient(f"http://127.0.0.1:{port}", token) as client:
            await client.wait_ready(60)
            async with await client.open_session(TASK) as session:
                await session.wait_reset()
                before = session.observation.screenshot
                reply = await session.step(
                    [Type(text="mkdir reports && ulimit -u >reports/tasks"), Press(key="enter")]
                )
                after = reply.observation.screenshot
                assert after.sha256 != before.sha256
                picture = Image.open(io.BytesIO(after.data)).convert("L")
                assert picture.size == (1280, 720)
                assert len(picture.getcolors(256) or ()) > 8  # not one colour: a window with text
                assert await session.evaluate() == 1.0

        assert podman("stop", "--time", "40", container).returncode == 0
        state = podman(
            "inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container
        ).stdout.split()
        assert state == ["0", "false"]
        assert "stopped" in logs(container)
        assert "does not take" not in logs(container)
    assert {"env.reset", "env.step", "env.evaluate"} <= {span.name for span in got.spans}
    assert {span.service for span in got.spans} == {names.ENV_SERVER}
    assert got.orphans() == []
    assert (names.ENV_SERVER, names.SERVER_DESKTOPS.name) in got.metrics


def exporting_to(got: Collector) -> tuple[str, ...]:
    return tuple(f"--env={name}={value}" for name, value in got.environment().items())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_images_are_built_and_serve() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("images cannot be built here: that needs root and apt-get")
    build = subprocess.run(
        ["bash", "scripts/setup_images.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    [image] = json.loads(podman("image", "inspect", need(IMAGE)).stdout)
    assert image["Config"]["User"] == "10001:10001"
    assert image["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "/healthz" in " ".join(image["Healthcheck"]["Test"])
    asyncio.run(_lease_act_score_drain(IMAGE))
