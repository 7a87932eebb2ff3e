"""The trainer's images, built for the CPU: a training step in one, against the env-server's image in another container."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from podman import RESTRICTED, logs, need, podman, running, until

SERVER = "localhost/arpo-env-server:server"
TOKEN = "trains-trains-trains-trains-trains"
RUN = (
    "config=/opt/arpo/configs/smoke_cpu.yaml", "env.url=http://127.0.0.1:18082", "env.token_file=/etc/arpo/tokens/token",
    "tasks.suite=simulated", "imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false",
    "trainer.max_steps=1", "trainer.tasks_per_step=1", "rollout.group_size=2", "run.dir=/runs", "run.name=one",
)  # fmt: skip
VLLM = (
    "engine.kind=vllm",
    "engine.vllm.enforce_eager=true",
    "engine.vllm.kv_cache_gib=0.25",
    "engine.vllm.mm_cache_gib=0.1",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("target", "image", "engine"),
    [
        ("trainer", "localhost/arpo-trainer:cpu", ()),
        ("trainer-vllm", "localhost/arpo-trainer:cpu-vllm", VLLM),
    ],
    ids=["hf", "vllm"],
)
def test_a_step_is_trained_in_the_container(
    target: str, image: str, engine: tuple[str, ...], tmp_path: Path
) -> None:
    image, server = need(image, f"make images ARGS={target}"), need(SERVER)
    tokens, runs = tmp_path / "tokens", tmp_path / "runs"
    for folder in (tokens, runs):
        folder.mkdir()
        os.chown(folder, 10001, 10001)
    (tokens / "token").write_text(f"{TOKEN} trainer run\n")
    (tokens / "token").chmod(0o400)
    os.chown(tokens / "token", 10001, 10001)
    shared = (*RESTRICTED, f"--volume={tokens}:/etc/arpo/tokens:ro")
    serve = ("--host=127.0.0.1", "--provider=simulated", "--token-file=/etc/arpo/tokens/token")
    with running(server, *shared, command=serve) as container:
        until(lambda: "listening on" in logs(container), container)
        beside = (*shared, f"--network=container:{container}", f"--volume={runs}:/runs", "--shm-size=512m")

        def arpo(command: str) -> str:
            words = ("arpo", command, *RUN, *engine)
            done = podman("run", "--rm", "--no-healthcheck", *beside, image, *words, timeout_s=400)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        arpo("doctor")
        arpo("train")
        (step,) = map(json.loads, (runs / "one" / "metrics.jsonl").read_text().splitlines())
        assert step["rollout/lost"] == 0
        assert (runs / "one" / "checkpoints").is_dir()
        assert podman("stop", "--time", "40", container).returncode == 0
