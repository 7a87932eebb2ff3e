"""`arpo train` with rollouts one version ahead, killed at random moments: no group is left out or learned from twice, and
what had ended by a checkpoint is not run again.
"""

from __future__ import annotations

import itertools
import random
import signal
import time
from pathlib import Path

import pytest
from records import Records, number_and_task
from runs import ROOT, alive, children, finish, lines, start, wait_for

from arpo.checkpoints import folders
from arpo.config.load import load_config
from arpo.learner.checkpoint import read_state
from arpo.trainer.cursor import TaskCursor
from arpo.trainer.schedule import ended_episodes, pending_groups
from arpo.trainer.stage import load_tasks
from arpo.trajectory import Trajectory

STEPS, TASKS, SIZE, KILLS = 8, 2, 4, 3
RUN = (
    "config=configs/smoke_cpu.yaml", "env.provider=simulated", "env.desktops=3", "env.screen=[640, 480]",
    "tasks.suite=simulated", "agent.max_pixels=12544", "engine.max_new_tokens=24",
    "imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false",
    f"trainer.tasks_per_step={TASKS}", f"rollout.group_size={SIZE}", "rollout.max_staleness=1",
    f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=2", "run.name=ahead",
)  # fmt: skip


CONFIG = load_config(ROOT / "configs" / "smoke_cpu.yaml", RUN[1:])


def ended(run: Path) -> dict[str, float]:
    """The episodes of groups in flight that a run killed now goes on with, and when they began."""
    saved = folders.latest(run / "checkpoints")
    names = ended_episodes(pending_groups(read_state(saved)["schedule"], CONFIG)) if saved else set()
    logs = [path for path in (run / "trajectories").glob("step-*.jsonl") if ".abandoned-" not in path.name]
    # the last line may be cut short
    recorded = [line for path in logs for line in path.read_text().splitlines() if line.endswith("}")]
    began = {t.episode_id: t.started_at for t in map(Trajectory.model_validate_json, recorded)}
    assert names <= began.keys()
    return {name: began[name] for name in names}


@pytest.mark.slow
def test_killed_at_random_it_leaves_no_group_out_and_runs_nothing_again_that_had_ended(
    tmp_path: Path,
) -> None:
    run, rng = tmp_path / "ahead", random.Random(1)
    command = (*RUN, f"run.dir={tmp_path}")
    went_on_with: dict[str, float] = {}
    for kill in range(KILLS):
        process = start(*command, OMP_NUM_THREADS="1")
        try:
            wait_for(lambda kill=kill: len(lines(run / "metrics.jsonl")) >= 2 * (kill + 1))
            time.sleep(rng.uniform(0, 1.0))
            family = children(process.pid)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        wait_for(lambda family=family: not alive(family), 30)
        went_on_with |= ended(run)
    process = start(*command, OMP_NUM_THREADS="1")
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming from" in output

    records = Records.of(run)
    records.assert_sound(steps=STEPS, groups=TASKS, size=SIZE, staleness=1)
    assert {row["rollout/valid"] for row in records.metrics} == {TASKS * SIZE}
    assert records.abandoned, "the kills have cost nothing, so nothing was tried"

    config = load_config(run / "config.yaml")
    _, tasks, _ = load_tasks(config)
    drawn = TaskCursor(tasks, config.run.seed, TASKS)
    expected = [(number, task.id) for number, task in enumerate(itertools.islice(drawn, STEPS * TASKS))]
    assert sorted({number_and_task(name) for name in records.learned}) == expected

    assert went_on_with, "no checkpoint had a group in flight with an ended episode"
    began = {t.episode_id: t.started_at for t in records.valid().values()}
    assert {name: began[name] for name in went_on_with} == went_on_with
