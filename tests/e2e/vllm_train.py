"""`arpo train` with the vllm engine. Run by `engines/test_vllm_engine.py`, in an environment that has vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from runs import alive, children, finish, lines, start, trajectories, wait_for
from test_train_on_ranks import UNTAUGHT

GAP = 1e-4
CORE, WORKER = "VLLM::EngineCore", "VLLM::Worker"
SMALL = (
    *UNTAUGHT, "env.desktops=2", "learner.ranks=1", "engine.kind=vllm", "engine.vllm.enforce_eager=true",
    "engine.vllm.kv_cache_gib=0.25", "engine.vllm.mm_cache_gib=0.1", "rollout.max_staleness=0",
    # a short imitation and a decay: every version samples otherwise than the one before
    "imitation.enabled=true", "imitation.steps=6", "imitation.check_every=6", "learner.lr=0.02", "learner.weight_decay=0.5",
)  # fmt: skip


def below(pid: int, *programs: str) -> list[int]:
    """Processes below a process whose command line begins with one of these."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_text().startswith(programs):
                found.append(child)
    return found


def tasks(folder: Path) -> str:
    """What is scored without desktop-env, which this environment has not."""
    path = folder / "tasks.json"
    path.write_text(json.dumps({"notes": ["notes-print"]}))
    return f"tasks.set={path}"


def test_a_vllm_actor_is_trained_with_and_replaced_when_it_or_its_core_dies(tmp_path: Path) -> None:
    began = time.monotonic()
    run = tmp_path / "vllm"
    process = start(
        *SMALL, tasks(tmp_path), "launcher.kind=ray", f"run.dir={tmp_path}", "run.name=vllm", "trainer.max_steps=100",
        OMP_NUM_THREADS="1", RAY_ADDRESS="",
    )  # fmt: skip

    def rows() -> list[dict[str, Any]]:
        return lines(run / "metrics.jsonl")

    def restarted(times: int) -> bool:
        assert process.poll() is None, finish(process)
        return bool(rows()) and rows()[-1]["engine/restarts"] == times

    try:
        wait_for(lambda: process.poll() is not None or len(rows()) >= 3, 240)
        assert process.poll() is None, finish(process)
        print(f"3 steps after {time.monotonic() - began:.0f} s")
        (core,) = below(process.pid, CORE)
        os.kill(core, signal.SIGKILL)
        wait_for(lambda: restarted(1), 240)
        print(f"core killed and replaced after {time.monotonic() - began:.0f} s")

        (actor,) = below(process.pid, "ray::EngineActor")
        orphans = below(process.pid, CORE, WORKER)
        assert len(orphans) == 2
        os.kill(actor, signal.SIGKILL)
        wait_for(lambda: not alive(orphans), 15)
        wait_for(lambda: restarted(2), 240)
        print(f"actor killed and replaced after {time.monotonic() - began:.0f} s")
        family = children(process.pid)
        process.send_signal(signal.SIGTERM)
        output = finish(process)
    finally:
        process.kill()
    assert process.returncode == 75, output
    wait_for(lambda: not alive(family), 15)

    assert output.count("starting it again") == 2
    assert "object store" not in output, "weights went straight to the workers, to the successors' too"
    assert lines(run / "faults.jsonl") == [], "no episode has seen it"
    assert [row["rollout/valid"] for row in rows()] == [3] * len(rows())
    # every step is on-policy, so after every push the engine samples what the learner would
    gaps = [row["learner/engine_logprob_gap"] for row in rows() if "learner/engine_logprob_gap" in row]
    print(f"{len(gaps)} steps, their log-prob gap at most {max(gaps):.2g}")
    assert len(gaps) >= 3
    assert max(gaps) < GAP, "the learner and the engine disagree: a push has not arrived"
    versions = {version for t in trajectories(run) for version in t.token_versions if version is not None}
    assert versions >= set(range(3))
