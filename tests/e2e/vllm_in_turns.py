"""`arpo train` with vllm engines on the learner's GPUs. Run by `engines/test_vllm_engine.py`, with vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import finish, lines, start, trajectories
from vllm_train import GAP, SMALL, tasks


@pytest.mark.parametrize(
    "where",
    [
        ("launcher.kind=local", "learner.ranks=1"),
        ("launcher.kind=ray", "learner.ranks=2", "launcher.engines=2", "launcher.cpus=0.5"),
    ],
    ids=["local", "ray"],
)
def test_a_run_is_trained_with_engines_that_sleep_while_the_learner_works(
    where: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "turns"
    process = start(
        *SMALL, *where, tasks(tmp_path), "engine.vllm.colocate=true", f"run.dir={tmp_path}", "run.name=turns",
        "trainer.max_steps=3", OMP_NUM_THREADS="1", RAY_ADDRESS="",
    )  # fmt: skip
    try:
        output = finish(process, 600)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "object store" not in output
    rows = lines(run / "metrics.jsonl")
    assert [row["rollout/valid"] for row in rows] == [3] * 3
    assert lines(run / "faults.jsonl") == [], "no episode has seen the turns"
    gaps = [row["learner/engine_logprob_gap"] for row in rows if "learner/engine_logprob_gap" in row]
    print(f"{len(gaps)} steps, their log-prob gap at most {max(gaps):.2g}")
    assert len(gaps) == 3
    assert max(gaps) < GAP, "the learner and the engine disagree: a push has not arrived"
    versions = {version for t in trajectories(run) for version in t.token_versions if version is not None}
    assert versions >= set(range(3))
