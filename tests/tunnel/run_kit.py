"""A training run whose desktops are at the other end of a tunnel, told from outside: what was applied, and what learned."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from records import Records
from runs import finish, lines, start
from server_process import ServerProcess, server_process
from tunnel_kit import Pod, Tunnel, Wire, options, pod, tunnel

TOKENS = "trains-trains-trains-trains trainer run\nlooks-looks-looks-looks-looks admin watcher\n"
STEPS, TASKS, SIZE, DESKTOPS = 3, 2, 3, 2
RUN = (
    "config=configs/smoke_cpu.yaml", f"env.desktops={DESKTOPS}", "agent.max_pixels=12544", "imitation.steps=40",
    "imitation.target_prob=0.3", "trainer.eval_before=false", "trainer.eval_after=false",
    f"trainer.tasks_per_step={TASKS}", f"rollout.group_size={SIZE}", f"trainer.max_steps={STEPS}", "run.name=far",
    "env.outage_s=null", "rollout.max_retries=0",
)  # fmt: skip
PROVIDERS = {
    "simulated": (["--screen", "640x480"], ["env.screen=[640, 480]", "tasks.suite=simulated"]),
    "xvfb": (["--screen", "1280x720"], ["tasks.set=smoke", "trainer.eval_repeats=1"]),
}
"""What an env-server and a run are given besides."""


class Far:
    """A run and everything between it and its desktops: env-server, tunnel, wire, pod."""

    def __init__(
        self, env: ServerProcess, wire: Wire, gate: Pod, up: Tunnel, run: Path, settings: list[str]
    ) -> None:
        self.env, self.wire, self.gate, self.up, self.run = env, wire, gate, up, run
        self.settings = settings

    def train(self, *more: str) -> subprocess.Popen[str]:
        """`arpo train` against the cluster's end of the tunnel."""
        return start(
            *RUN, *self.settings, f"run.dir={self.run.parent}", f"env.url=http://127.0.0.1:{self.gate.env_port}",
            f"env.token_file={self.env.folder / 'token'}", *more, OMP_NUM_THREADS="1",
        )  # fmt: skip

    def applied(self) -> dict[str, float]:
        """What the env-server, asked directly, has done: steps that were applied, steps that were only sent again."""
        token = TOKENS.splitlines()[1].split()[0]
        text = httpx.get(f"{self.env.url}/metrics", headers={"Authorization": f"Bearer {token}"}).text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        count = [
            s.value
            for s in samples
            if s.name == "arpo_operation_seconds_count"
            and s.labels["operation"] == "step"
            and s.labels["outcome"] == "ok"
        ]
        repeats = [s.value for s in samples if s.name == "arpo_step_repeats_total"]
        return {"steps": sum(count), "repeats": sum(repeats)}

    def in_the_middle(self, process: subprocess.Popen[str], *, steps: int, timeout_s: float = 240) -> None:
        """Wait until steps of episodes beyond the warm start's have been applied."""
        deadline = time.monotonic() + timeout_s
        while not self.run_begun() or self.applied()["steps"] < self.before + steps:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the run takes no steps"
            time.sleep(0.02)

    def run_begun(self) -> bool:
        """Whether the warm start is over; counts its steps then, once."""
        if not hasattr(self, "before"):
            if not any(
                "000000" not in path.name for path in (self.run / "trajectories").glob("step-*.jsonl")
            ):
                return False
            self.before = self.applied()["steps"]
        return True

    def finished(self, process: subprocess.Popen[str], timeout_s: float) -> tuple[str, Records]:
        """Its output and records, when it has trained all steps."""
        output = finish(process, timeout_s)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        records = Records.of(self.run)
        records.assert_sound(steps=STEPS, groups=TASKS, size=SIZE, staleness=0)
        return output, records


@contextlib.contextmanager
def far_desktops(folder: Path, provider: str) -> Iterator[Far]:
    """Desktops behind a tunnel that is ready."""
    server, settings = PROVIDERS[provider]
    (folder / "token").write_text(TOKENS)
    with (
        pod(folder / "pod") as gate,
        server_process(folder, "--capacity", str(DESKTOPS), *server, provider=provider) as env,
    ):
        wire = Wire(gate.port)
        with tunnel(folder, *options(gate, port=wire.port, env_url=env.url)) as up:
            up.wait_for("ready: the env-server", 120)
            yield Far(env, wire, gate, up, folder / "far", settings)


def sent(run: Path) -> int:
    """Steps that all recorded episodes, the demonstrations too, say that they have sent: turns that were actions."""
    return sum(
        sum(turn["format_error"] is None for turn in episode["turns"])
        for path in (run / "trajectories").glob("step-*.jsonl")
        for episode in lines(path)
    )
