"""A training run whose desktops are behind a bad network, and are killed at random: it takes every step, and what it
learned from is what evaluators said, of episodes that nothing had happened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fault_proxy import NetFault, RandomFaults, fault_proxy
from records import Records
from runs import ROOT, lines
from server_process import ServerProcess, server_process

STEPS, TASKS, SIZE, DESKTOPS = 6, 2, 3, 3
SERVER_KILLS = 2
TOKENS = "trains-trains-trains-trains trainer run\nkills-kills-kills-kills-kills admin reaper\n"
# those that end or delay a request; a black hole would only make the run wait for its time-outs
KINDS = (
    NetFault.DELAY, NetFault.LOSE_REQUEST, NetFault.LATE_REQUEST, NetFault.LOSE_REPLY, NetFault.CUT_REPLY,
    NetFault.RESET_BEFORE, NetFault.RESET_AFTER, NetFault.BAD_GATEWAY,
)  # fmt: skip
RUN = (
    "config=configs/smoke_cpu.yaml", "env.screen=[640, 480]", "tasks.suite=simulated", f"env.desktops={DESKTOPS}",
    "agent.max_pixels=12544", "imitation.steps=40", "imitation.target_prob=0.3", "trainer.eval_before=false",
    "trainer.eval_after=false", f"trainer.tasks_per_step={TASKS}", f"rollout.group_size={SIZE}",
    "rollout.max_staleness=1", f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=3", "run.name=faults",
)  # fmt: skip


class Desktops:
    """An `arpo-env-server` process and who kills in it. sessions, servers: how many were killed so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        (folder / "token").write_text(TOKENS)
        self._process = self._start(0)
        self.url = self._process.url
        self.sessions = self.servers = 0

    def _start(self, port: int) -> ServerProcess:
        (self._folder / "url").unlink(missing_ok=True)
        size = ("--capacity", str(DESKTOPS), "--screen", "640x480")
        return self._stack.enter_context(server_process(self._folder, *size, port=port))

    async def kill_server(self) -> None:
        """SIGKILL, all its desktops with it; another one takes its port."""
        self._process.process.kill()
        self._process.process.wait()
        self.servers += 1
        port = int(self.url.rpartition(":")[2])
        self._process = await asyncio.to_thread(self._start, port)

    async def kill_session(self, rng: random.Random) -> None:
        """Take the desktop from an episode, whatever it is doing; nothing when none runs."""
        headers = {"Authorization": f"Bearer {TOKENS.splitlines()[1].split()[0]}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers) as http:
            listed = (await http.get("/v1/sessions")).json()["sessions"]
            if listed:
                one = rng.choice(listed)["session_id"]
                self.sessions += (await http.delete(f"/v1/sessions/{one}")).status_code == 204

    def close(self) -> None:
        self._stack.close()


@asynccontextmanager
async def killing(desktops: Desktops, run: Path, rng: random.Random) -> AsyncIterator[None]:
    """Kills a session whenever a few episodes have ended, and the whole server twice, after steps drawn at random.

    By episodes, not by a clock: however slow the machine, most episodes live.
    """

    async def kill() -> None:
        deaths = rng.sample(range(1, STEPS - 1), SERVER_KILLS)
        next_after = 0
        while True:
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            if ended_episodes(run) < next_after:
                continue
            next_after = ended_episodes(run) + rng.randint(2, 5)
            done = len(lines(run / "metrics.jsonl"))
            if any(step <= done for step in deaths):
                deaths.remove(min(deaths))
                await desktops.kill_server()
            else:
                await desktops.kill_session(rng)

    task = asyncio.create_task(kill())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def ended_episodes(run: Path) -> int:
    """How many have ended since the warm start; -1 before the first."""
    logs = [path for path in (run / "trajectories").glob("step-*.jsonl") if "000000" not in path.name]
    return sum(path.read_bytes().count(b"\n") for path in logs) if logs else -1


async def trained(folder: Path, desktops: Desktops, seed: int) -> tuple[int, str, Counter[NetFault]]:
    """Exit code and output of `arpo train`, and what the network did to it."""
    run = folder / "faults"
    choose = RandomFaults(seed, 0.08, KINDS)
    async with fault_proxy(desktops.url, choose=choose, delay_s=0.1) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "arpo.cli", "train", *RUN, f"run.dir={folder}", f"run.seed={seed}",
            f"env.url={proxy.url}", f"env.token_file={folder / 'token'}",
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with killing(desktops, run, random.Random(seed)), asyncio.timeout(240):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return process.returncode or 0, output.decode(), proxy.faults


@pytest.mark.slow
def test_every_step_is_taken_and_no_fault_touches_a_reward(tmp_path: Path) -> None:
    desktops = Desktops(tmp_path)
    try:
        code, output, network = asyncio.run(trained(tmp_path, desktops, seed=0))
    finally:
        desktops.close()
    assert code == 0, output
    assert "Traceback" not in output
    assert set(network) == set(KINDS)
    assert desktops.servers == SERVER_KILLS
    assert desktops.sessions >= 3

    records = Records.of(tmp_path / "faults")
    records.assert_sound(steps=STEPS, groups=TASKS, size=SIZE, staleness=1)
    assert {t.score for t in records.valid().values()} == {0.0, 1.0}, "no reward could have been touched"
    assert any(row["learner/grad_norm"] > 0 for row in records.metrics)
    assert records.abandoned == []
    faulty = {row["episode_id"] for row in records.faults}
    assert faulty
    assert {t.episode_id for t in records.kept if t.problem is not None} == faulty
    assert not faulty & set(records.learned)
    assert not faulty & {name for b in records.batches for g in b["groups"] for name in g["replayed"]}
    codes = {row["code"] for row in records.faults}
    assert "lease_lost" in codes, "no episode has noticed that its desktop was taken"
    assert "backend_lost" in codes, "no episode has noticed that its server died"
