"""`arpo train` on a real Ray cluster: submitted as a job, and with engine, learner rank and driver killed under it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import RayCluster, ray_cluster
from runs import alive, children, finish, lines, start, wait_for
from test_train_on_ranks import UNTAUGHT

ray = pytest.importorskip("ray", reason="ray is not installed; fix: pip install 'arpo[ray]'")
pytest.importorskip("aiohttp", reason="Ray's job server is not installed; fix: pip install 'arpo[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 3
# one desktop: the engine's batches are the same in every run, so that numbers can be compared
SMALL = (*UNTAUGHT, "env.desktops=1", "learner.ranks=2", f"rollout.group_size={SIZE}")
ON_RAY = "launcher.kind=ray"

CLOCKED = ("seconds", "utilisation", "engine_requests")
"""What a clock says of a step."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=4) as started:
        yield started


def metrics(run: Path) -> list[dict[str, Any]]:
    return lines(run / "metrics.jsonl")


def test_a_job_ends_with_the_numbers_of_a_local_run_and_with_the_truth(
    cluster: RayCluster, tmp_path: Path
) -> None:
    # a short imitation gives both something to disagree on: an untaught policy has no gradient
    taught = (
        *SMALL, "imitation.enabled=true", "imitation.steps=4", "imitation.check_every=4", "trainer.max_steps=2",
        f"run.dir={tmp_path}",
    )  # fmt: skip
    local = start(*taught, "run.name=local", OMP_NUM_THREADS="1")
    assert local.wait(240) == 0, local.stdout.read()
    config = [
        f"config={Path(one.removeprefix('config=')).absolute()}"
        for one in taught
        if one.startswith("config=")
    ]
    rest = [one for one in taught if not one.startswith("config=")]
    job = cluster.submit(*config, *rest, "run.name=job", ON_RAY)
    assert job.returncode == 0, job.stdout + job.stderr
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("local", "job"))
    assert one["missing"] == two["missing"] == []
    for key in ("probability_before", "probability_after"):
        assert two["warm_start"][key] == pytest.approx(one["warm_start"][key], rel=1e-4)
    for mine, theirs in zip(metrics(tmp_path / "local"), metrics(tmp_path / "job"), strict=True):
        assert mine.keys() == theirs.keys()
        same = [
            key for key in mine
            if key.startswith(("rollout/", "learner/")) and not any(word in key for word in CLOCKED)
        ]  # fmt: skip
        assert len(same) > 10
        for key in same:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), key
    wait_for(lambda: not cluster.actors(), 30)

    refused = cluster.submit(*config, *rest, "run.name=wrong", ON_RAY, "rollout.group_size=1")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "fix: rollout.group_size=2 or more" in refused.stdout


def test_a_cluster_without_room_and_one_that_is_not_there_are_said(
    cluster: RayCluster, tmp_path: Path
) -> None:
    command = (*SMALL, ON_RAY, f"run.dir={tmp_path}")
    large = start(
        *command, "run.name=large", "launcher.engines=9", "launcher.start_timeout_s=1", **cluster.env
    )
    nowhere = start(*command, "run.name=nowhere", "launcher.address=127.0.0.1:1", OMP_NUM_THREADS="1")
    output = finish(large)
    assert large.returncode == 1, output
    assert "no room for the run's 11 CPU (free: 4 CPU of 4 CPU) after 1 s; fix: a larger cluster" in output
    output = finish(nowhere)
    assert nowhere.returncode == 2, output
    assert "no Ray cluster answers at 127.0.0.1:1" in output


def test_the_run_goes_on_when_engine_rank_and_driver_are_killed(cluster: RayCluster, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    command = (*SMALL, ON_RAY, f"run.dir={tmp_path}", "run.name=killed")
    driver = start(*command, "trainer.max_steps=90", **cluster.env)
    try:
        wait_for(lambda: metrics(run), 240)
        (engine,) = cluster.actors("ray::EngineActor")
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: metrics(run)[-1]["engine/restarts"] == 1, 240)
        assert lines(run / "faults.jsonl") == [], "no episode has seen it"
        assert [row["rollout/retries"] for row in metrics(run)] == [0] * len(metrics(run))

        done = len(metrics(run))
        ranks = cluster.actors("ray::RankActor")
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        wait_for(lambda: not alive(ranks))
        wait_for(lambda: len(metrics(run)) > done, 240)

        family, actors = children(driver.pid), cluster.actors()
        assert len(actors) == 3
    finally:
        driver.kill()
    output = finish(driver)
    wait_for(lambda: not alive([*family, *actors]), 30)
    assert "engine 0 ended" in output
    assert "learner rank" in output
    assert "going on from" in output

    steps = int(max((run / "checkpoints").glob("step-*")).name.removeprefix("step-")) + 1
    again = start(*command, f"trainer.max_steps={steps}", **cluster.env)
    output = finish(again)
    assert again.returncode == 0, output
    assert "resuming from" in output
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["rollout/valid"] for row in rows] == [SIZE] * steps
    wait_for(lambda: not cluster.actors(), 30)


def test_sigterm_on_a_cluster_of_its_own_saves_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "own"
    process = start(
        *SMALL, ON_RAY, f"run.dir={tmp_path}", "run.name=own", "trainer.max_steps=50", "trainer.checkpoint_every=40",
        OMP_NUM_THREADS="1", RAY_ADDRESS="",
    )  # fmt: skip
    try:
        wait_for(lambda: metrics(run), 240)
        family = children(process.pid)
        process.send_signal(signal.SIGTERM)
        output = finish(process)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert "Traceback" not in output
    done = int(metrics(run)[-1]["step"])
    assert (
        output.strip().splitlines()[-1] == f"terminated: step-{done:06d} is saved; the same command goes on"
    )
    wait_for(lambda: not alive(family), 30)
