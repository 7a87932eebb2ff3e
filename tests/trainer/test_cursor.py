"""Task order: distinct within a step, seeded, and the same after a resume."""

from __future__ import annotations

import pytest

from arpo.tasks.model import Evaluator, Task
from arpo.trainer.cursor import TaskCursor

TASKS = [Task(id=str(i), instruction="x", evaluator=Evaluator(func="infeasible")) for i in range(10)]


def ids(tasks: list[Task]) -> list[str]:
    return [t.id for t in tasks]


def take(cursor: TaskCursor, count: int) -> list[str]:
    return ids([next(cursor) for _ in range(count)])


def test_a_step_never_holds_a_task_twice_and_a_pass_visits_all() -> None:
    cursor = TaskCursor(TASKS, seed=3, per_step=5)
    steps = [take(cursor, 5) for _ in range(4)]
    assert all(len(set(step)) == 5 for step in steps)
    assert sorted(steps[0] + steps[1]) == sorted(ids(TASKS))
    assert steps[0] + steps[1] != steps[2] + steps[3]


def test_a_pass_whose_rest_fills_no_step_ends_early_and_leaves_no_task_out_for_long() -> None:
    cursor = TaskCursor(TASKS, seed=3, per_step=4)
    steps = [take(cursor, 4) for _ in range(40)]
    assert all(len(set(step)) == 4 for step in steps)
    taken = [task for step in steps for task in step]
    assert all(10 <= taken.count(task) <= 20 for task in ids(TASKS))


def test_a_restored_cursor_goes_on_where_the_other_was() -> None:
    one = TaskCursor(TASKS, seed=3, per_step=3)
    take(one, 7)
    other = TaskCursor(TASKS, seed=3, per_step=3)
    other.restore(one.state())
    assert take(one, 15) == take(other, 15)


def test_more_tasks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="11 tasks wanted of 10"):
        TaskCursor(TASKS, seed=0, per_step=11)
