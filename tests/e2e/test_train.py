"""The whole loop through its real door: `arpo train` as a process, an env-server over HTTP, a run directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from runs import ROOT, alive, children, finish, lines, start, trajectories, wait_for

SIMULATED = ("config=configs/smoke_cpu.yaml", "env.provider=simulated", "tasks.suite=simulated")
# A policy that was not warm-started: its episodes end at the first turn, which is all that these tests need.
UNTAUGHT = (
    *SIMULATED, "imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false",
    "agent.max_pixels=12544",
)  # fmt: skip


@pytest.mark.slow
def test_make_smoke_on_simulated_desktops_leaves_a_whole_run_directory(tmp_path: Path) -> None:
    arguments = f"ARGS=run.dir={tmp_path} run.name=two trainer.max_steps=2"
    process = subprocess.Popen(
        ["make", "smoke", "PROVIDER=simulated", arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    output = finish(process)
    assert process.returncode == 0, output
    run = tmp_path / "two"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["missing"] == []
    assert summary["steps"] == 2
    assert summary["warm_start"]["demonstrations"] >= 4
    assert summary["faults"] == {}
    steps = lines(run / "metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["learner/optimizer_steps"] >= 1
        assert row["rollout/valid"] == 16
        assert row["learner/lr"] > 0
        assert row["learner/engine_logprob_gap_max"] < 1e-3
    recorded = trajectories(run)
    assert all(t.valid for t in recorded)
    for trajectory in recorded:
        for picture in trajectory.images:
            assert (run / "screenshots" / picture.sha256[:2] / f"{picture.sha256}.png").exists()
        last = trajectory.turns[-1]
        assert all(trajectory.loss_mask[last.start : last.end]), "the last turn is trained on"
    for name in ("config.yaml", "checkpoints", "evaluations/before.json", "evaluations/after.json"):
        assert (run / name).exists(), name
    assert "success before" in output
    assert "success after" in output


@pytest.mark.slow
def test_a_killed_env_server_costs_faults_and_never_a_reward_and_training_goes_on(tmp_path: Path) -> None:
    process = start(
        *SIMULATED, f"run.dir={tmp_path}", "run.name=killed", "trainer.max_steps=2", "imitation.steps=15"
    )
    run = tmp_path / "killed"
    try:
        wait_for(lambda: len(lines(run / "trajectories" / "step-000001.jsonl")) >= 2)
        servers = [
            pid
            for pid in children(process.pid)
            if b"arpo.server.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert servers
        os.kill(servers[0], signal.SIGKILL)
        output = finish(process)
    finally:
        process.kill()
    assert process.returncode == 0, output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["env_server_restarts"] == 1
    faults = lines(run / "faults.jsonl")
    assert faults
    assert {fault["fault"] for fault in faults} == {"environment"}
    assert summary["faults"] == {
        code: sum(f["code"] == code for f in faults) for code in {f["code"] for f in faults}
    }
    faulty = {fault["episode_id"] for fault in faults}
    for trajectory in trajectories(run):
        assert (trajectory.score is None) == (trajectory.episode_id in faulty)
    assert [row["rollout/valid"] for row in lines(run / "metrics.jsonl")] == [16, 16]


@pytest.mark.slow
def test_a_run_killed_with_its_driver_resumes_and_leaves_no_process(tmp_path: Path) -> None:
    arguments = (*UNTAUGHT, f"run.dir={tmp_path}", "run.name=resumed", "trainer.max_steps=2")
    run = tmp_path / "resumed"
    process = start(*arguments)
    wait_for(lambda: len(lines(run / "trajectories" / "step-000002.jsonl")) >= 1, 200)
    family = children(process.pid)
    assert family
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(family), 30)

    process = start(*arguments)
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming" in output
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]
    assert json.loads((run / "summary.json").read_text())["missing"] == []
    assert list((run / "trajectories").glob("step-000002.abandoned-1.jsonl"))


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_with_exit_code_130(tmp_path: Path) -> None:
    process = start(*UNTAUGHT, f"run.dir={tmp_path}", "run.name=stopped")
    run = tmp_path / "stopped"
    wait_for(lambda: len(lines(run / "trajectories" / "step-000001.jsonl")) >= 1)
    family = children(process.pid)
    process.send_signal(signal.SIGINT)
    output = finish(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not alive(family)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["state"], summary["steps"]) == ("stopped", 0)
    assert summary["reason"] == output.splitlines()[-1]
    assert "training: 0 of 3 steps" in summary["missing"]
