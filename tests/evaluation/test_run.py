"""Evaluations on scripted desktops: faults apart from failures, and only what is lacking is run."""

from __future__ import annotations

import asyncio

import pytest
from evaluation_kit import BROKEN, record
from rollout_kit import FINISH, Says, rules, runner, scripted, task
from scripted_desktop import Script, env_server

from arpo.evaluation.record import EvaluationRecord
from arpo.evaluation.result import EvaluationResult
from arpo.evaluation.run import evaluate
from arpo.rollout.collect import Collector
from arpo.trajectory import Trajectory


def run(
    folder, script: Script, mine: EvaluationRecord, *, retries: int = 0
) -> tuple[EvaluationResult, list[Trajectory]]:
    ended: list[Trajectory] = []

    async def at_once() -> None: ...

    async def main() -> EvaluationResult:
        async with env_server(folder, script, capacity=2) as server:
            await server.client.wait_ready(5)
            collector = Collector(
                runner=runner(server, folder),
                engine=Says(FINISH),
                rules=rules(),
                concurrency=2,
                on_trajectory=ended.append,
                after_fault=at_once,
            )
            tasks = [task(one.task_id) for one in mine.identity.tasks]
            return await evaluate(collector, tasks, mine, max_retries=retries, seed=0)

    return asyncio.run(main()), ended


def test_faults_are_no_failures_and_are_run_again_by_the_next_call(tmp_path) -> None:
    script = Script(evaluate=scripted([BROKEN, 0.0, 1.0]))
    result, ended = run(tmp_path, script, record(tmp_path, repeats=2))
    assert (result.faults, result.episodes, result.lost) == ({"evaluator_failed": 1}, 3, 1)
    assert sorted(score for one in result.tasks for score in one.scores) == [0.0, 1.0, 1.0]
    assert result.policy_version == 7
    assert len(ended) == 4

    again, ended = run(tmp_path, Script(), record(tmp_path, repeats=2))
    assert (again.episodes, again.lost, again.faults) == (4, 0, {"evaluator_failed": 1})
    assert len(ended) == 1

    whole, ended = run(tmp_path, Script(), record(tmp_path, repeats=2))
    assert (whole, ended) == (again, [])

    more, ended = run(tmp_path, Script(), record(tmp_path, repeats=3))
    assert (more.episodes, len(ended)) == (6, 2)


def test_a_retried_episode_counts_once(tmp_path) -> None:
    script = Script(evaluate=scripted([BROKEN, BROKEN, 1.0]))
    result, ended = run(tmp_path, script, record(tmp_path), retries=2)
    assert (result.success, result.lost, result.faults) == (1.0, 0, {"evaluator_failed": 2})
    assert len(ended) == 4
    assert record(tmp_path).result() == result


def test_the_result_of_tasks_that_were_all_lost_is_none_and_not_0(tmp_path) -> None:
    result, _ = run(tmp_path, Script(evaluate=lambda desktop: BROKEN), record(tmp_path))
    assert (result.success, result.lost, result.episodes) == (None, 2, 0)


def test_a_bug_leaves_what_had_ended_recorded(tmp_path) -> None:
    script = Script(evaluate=scripted([1.0, 1.0, 1.0]))

    mine = record(tmp_path, "a", "b", "c")
    append = mine.append

    def append_twice(trajectory: Trajectory) -> None:
        if len(mine.episodes) == 2:
            raise ZeroDivisionError
        append(trajectory)

    mine.append = append_twice  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup):
        run(tmp_path, script, mine)
    left = record(tmp_path, "a", "b", "c")
    assert left.result().episodes == 2
    result, ended = run(tmp_path, Script(), left)
    assert (result.episodes, len(ended)) == (3, 1)
