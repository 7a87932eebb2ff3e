"""While the env-server is away nothing is overdue, and what it took down costs no retry."""

from __future__ import annotations

import pytest
from schedule_kit import a_task, a_trajectory, endless

from arpo.rollout.scheduler import Scheduler, SchedulerRules


def test_time_in_which_the_env_server_is_away_makes_nothing_overdue() -> None:
    rules = SchedulerRules(2, 1, max_retries=0, seed=0, overdue_factor=2.0, early_close_share=0.5)
    scheduler = Scheduler(endless(1), rules, label="s")
    for _ in range(4):  # eight episodes of a second: enough to tell
        for episode in (scheduler.next(0.0), scheduler.next(0.0)):
            scheduler.ended(a_trajectory(episode))
        assert scheduler.take(0.0) is not None
        scheduler.pushed(scheduler.version + 1)
    slow, other = scheduler.next(100.0), scheduler.next(100.0)
    scheduler.ended(a_trajectory(other, version=scheduler.version))
    assert scheduler.overdue_at(100.5) == 102.0

    scheduler.away(101.0)
    assert scheduler.overdue_at(101.0) is None
    assert scheduler.take(500.0) is None
    assert scheduler.withdrawals() == []

    scheduler.back(500.0)
    assert scheduler.take(500.5) is None
    assert scheduler.overdue_at(500.5) == 501.0
    assert scheduler.take(501.5) is not None
    assert scheduler.withdrawals() == [slow.id]


def test_an_outage_costs_no_retry_but_a_task_cannot_take_the_server_down_for_ever() -> None:
    scheduler = Scheduler(
        iter([a_task("t")]), SchedulerRules(1, 1, max_retries=1, seed=0), label="s", batches=1
    )
    first = scheduler.next(0.0)
    group = scheduler.groups[0]
    assert scheduler.ended(a_trajectory(first, valid=False), outage=True) is None
    for _ in range(9):
        assert scheduler.ended(a_trajectory(scheduler.next(0.0), valid=False), outage=True) is None
    assert (group.outages, group.retries) == (10, 0)
    assert scheduler.ended(a_trajectory(scheduler.next(0.0), valid=False)) is None
    assert group.retries == 1
    for _ in range(100):
        if scheduler.ended(a_trajectory(scheduler.next(0.0), valid=False), outage=True) is not None:
            break
    assert group.closed
    assert group.lost == {0}


@pytest.mark.parametrize("waits_for_engine", [False, True])
def test_time_is_put_off_once(waits_for_engine: bool) -> None:
    scheduler = Scheduler(
        endless(1), SchedulerRules(9, 1, max_retries=0, seed=0, overdue_factor=2.0), label="s"
    )
    for _ in range(8):
        scheduler.ended(a_trajectory(scheduler.next(0.0)))
    last = scheduler.next(0.0)
    if waits_for_engine:
        scheduler.asked(last.id, 0.0)
        scheduler.answered(last.id, 10.0)
    else:
        scheduler.away(0.0)
        scheduler.back(10.0)
    assert scheduler.overdue_at(10.0) == 12.0
