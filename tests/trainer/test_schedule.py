"""What a checkpoint keeps of groups in flight: the run that goes on from it has them all, and runs nothing again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from schedule_kit import a_task, a_trajectory

from arpo.config.load import load_config
from arpo.config.model import Config
from arpo.protocol.problems import ConfigError
from arpo.rollout.groups import Episode, Group
from arpo.rollout.scheduler import Scheduler
from arpo.trainer.schedule import Schedule, ended_episodes, pending_groups
from arpo.trajectory.store import TrajectoryLog

TASKS = [a_task(f"t{number}") for number in range(6)]


def config(*overrides: str) -> Config:
    small = ("trainer.tasks_per_step=2", "rollout.group_size=2", "rollout.max_staleness=1")
    return load_config(None, [*small, *overrides])


def schedule(folder: Path, tasks=TASKS, *overrides: str) -> Schedule:
    """Steps of two groups of two; a group teaches when its scores differ."""

    def teaches(group: Group) -> bool:
        return len({t.score for t in group.trajectories}) > 1

    return Schedule(config(*overrides), tasks, TrajectoryLog(folder), teaches)


def handed_out(scheduler: Scheduler) -> list[Episode]:
    return list(iter(lambda: scheduler.next(0.0), None))


def finish(folder: Path, scheduler: Scheduler, episode: Episode, score: float = 0.0) -> None:
    scheduler.began(episode.id)
    ended = a_trajectory(episode, version=scheduler.version, score=score)
    TrajectoryLog(folder).append(1, ended)
    scheduler.ended(ended)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def gone_on(folder: Path, state: dict[str, Any], *overrides: str) -> Scheduler:
    again = schedule(folder, TASKS, *overrides)
    again.restore(stored(state))
    assert stored(again.state()) == stored(state), "a checkpoint before the first step would hold another run"
    return again.begin(0, 9)


def test_what_had_ended_is_there_and_everything_else_is_handed_out_again(tmp_path: Path) -> None:
    first = schedule(tmp_path)
    scheduler = first.begin(0, 9)
    episodes = handed_out(scheduler)
    assert len(episodes) == 8  # two batches in flight
    for episode in (episodes[0], episodes[1], episodes[5]):
        finish(tmp_path, scheduler, episode)
    state = first.state()
    assert ended_episodes(pending_groups(stored(state), config())) == {episodes[i].id for i in (0, 1, 5)}
    again = gone_on(tmp_path, state)
    assert handed_out(again) == [episodes[i] for i in (2, 3, 4, 6, 7)]
    assert again.first_number == 4


def test_what_was_run_again_stays_run_again_and_a_place_that_was_given_up_stays_empty(tmp_path: Path) -> None:
    first = schedule(tmp_path, TASKS, "rollout.max_retries=1")
    scheduler = first.begin(0, 9)
    episodes = handed_out(scheduler)
    for _ in range(3):  # the group has two retries
        place = [e for e in episodes if e.id.split("-retry")[0] == "train/000000-t0/0"][-1]
        scheduler.ended(a_trajectory(place, valid=False, version=0))
        episodes += handed_out(scheduler)
    scheduler.ended(a_trajectory(episodes[2], valid=False, version=0))
    expected = handed_out(scheduler)
    assert [e.id for e in expected] == [f"{episodes[2].id}-retry1"]
    again = handed_out(gone_on(tmp_path, first.state(), "rollout.max_retries=1"))
    assert again[:3] == [episodes[1], *expected, episodes[3]]


def test_an_ended_episode_whose_line_is_lost_is_run_again(tmp_path: Path) -> None:
    first = schedule(tmp_path)
    scheduler = first.begin(0, 9)
    episodes = handed_out(scheduler)
    finish(tmp_path, scheduler, episodes[0])
    (tmp_path / "step-000001.jsonl").unlink()
    assert handed_out(gone_on(tmp_path, first.state())) == episodes


def test_a_group_that_was_refilled_is_still_handed_over_as_spare(tmp_path: Path) -> None:
    first = schedule(tmp_path, TASKS, "rollout.refill=1")
    scheduler = first.begin(0, 9)
    episodes = handed_out(scheduler)
    for episode in episodes[:2]:
        finish(tmp_path, scheduler, episode, 1.0)
    assert [group.number for group in scheduler.groups] == [1, 2, 3, 0]
    again = gone_on(tmp_path, first.state(), "rollout.refill=1")
    following = handed_out(again)
    assert {e.group_id for e in following}.isdisjoint({episodes[0].group_id})
    for episode in following:
        finish(tmp_path, again, episode)
    batch = again.take(0.0)
    assert batch is not None
    assert [group.number for group in batch.spare] == [0]
    assert [t.score for t in batch.spare[0].trajectories] == [1.0, 1.0]
    assert 0 not in [group.number for group in batch.groups]


def test_a_task_in_flight_that_is_gone_is_named(tmp_path: Path) -> None:
    first = schedule(tmp_path)
    handed_out(first.begin(0, 9))
    again = schedule(tmp_path, [a_task(f"u{number}") for number in range(6)])
    again.restore(stored(first.state()))
    with pytest.raises(ConfigError, match=r"which the run has begun, is not in tasks\.set"):
        again.begin(0, 9)


@pytest.mark.parametrize(
    "smaller", ["rollout.max_staleness=0", "trainer.tasks_per_step=1", "rollout.group_size=3"]
)
def test_with_other_sizes_the_groups_in_flight_are_begun_anew_and_every_step_gets_its_batch(
    tmp_path: Path, smaller: str
) -> None:
    first = schedule(tmp_path)
    scheduler = first.begin(0, 9)
    for episode in handed_out(scheduler)[:5]:
        finish(tmp_path, scheduler, episode)
    again = schedule(tmp_path, TASKS, smaller)
    again.restore(stored(first.state()))
    scheduler = again.begin(0, 9)
    numbers: list[int] = []
    for version in range(4):
        while (batch := scheduler.take(0.0)) is None:
            episodes = handed_out(scheduler)
            assert episodes, "nothing is left to run, and there is no batch"
            for episode in episodes:
                finish(tmp_path, scheduler, episode)
        numbers += [group.number for group in batch.groups]
        scheduler.pushed(version + 1)
    assert numbers == list(range(len(numbers)))
