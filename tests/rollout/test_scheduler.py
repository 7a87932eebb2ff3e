"""Every dispatched episode ends exactly once, no group is lost or mixed, nothing too old is learned from, and a step always
gets its batch: whatever fails or hangs in whatever order.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from schedule_kit import a_task, a_trajectory, endless

from arpo.rollout.groups import Batch, Begun, Episode, Group
from arpo.rollout.rules import SchedulerRules
from arpo.rollout.scheduler import Scheduler

TASKS = 5


class Rollouts(RuleBasedStateMachine):
    """Desktops, an engine and a learner that do whatever they may, at random.

    A hung episode never ends by itself.
    """

    @initialize(
        group_size=st.integers(1, 4),
        groups_per_step=st.integers(1, 3),
        max_staleness=st.integers(0, 3),
        max_retries=st.integers(0, 2),
        oversample=st.sampled_from([0, 0, 0, 1, 2]),
        refill=st.sampled_from([0, 0, 2]),
        overdue_factor=st.sampled_from([None, 2.0]),
        early_close_share=st.sampled_from([0.3, 0.5, 1.0]),
    )
    def begin(self, **rules: Any) -> None:
        self.rules = SchedulerRules(**rules, seed=0)
        self.scheduler = Scheduler(
            endless(TASKS), self.rules, label="s", learns=lambda g: len({t.score for t in g.trajectories}) > 1
        )
        self.now = 0.0
        self.learning = False
        self.running: dict[str, Episode] = {}
        self.hung: set[str] = set()
        self.sampled: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.left: Counter[str] = Counter()
        self.opened: list[str] = []

    # --- what desktops do ---

    @rule(desktops=st.integers(1, 6))
    def desktops_are_free(self, desktops: int) -> None:
        for _ in range(desktops):
            self.a_desktop_is_free()

    def a_desktop_is_free(self) -> None:
        episode = self.scheduler.next(self.now)
        if episode is None:
            return
        assert episode.id not in self.running
        assert episode.id not in self.ended
        assert episode.id.startswith(episode.group_id + "/")
        assert episode.group_id.endswith("-" + episode.task.id)
        if episode.group_id not in self.opened:
            self.opened.append(episode.group_id)
        assert self.left[episode.group_id] == 0
        self.running[episode.id] = episode

    @precondition(lambda self: self.running)
    @rule(
        picks=st.lists(st.integers(0, 20), min_size=1, max_size=6),
        score=st.sampled_from([0.0, 1.0]),
        valid=st.sampled_from([True, True, True, False]),
    )
    def episodes_end(self, picks: list[int], score: float, valid: bool) -> None:
        for pick in picks:
            if self.running:
                episode_id = list(self.running)[pick % len(self.running)]
                if episode_id not in self.hung:
                    self.end(episode_id, valid, score)

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0))
    def an_episode_is_sampled(self, pick: int) -> None:
        self.sample(list(self.running)[pick % len(self.running)])

    @precondition(lambda self: self.running and self.rules.overdue_factor is not None)
    @rule(pick=st.integers(0))
    def an_episode_hangs(self, pick: int) -> None:
        self.hung.add(list(self.running)[pick % len(self.running)])

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_shell_stops_what_was_withdrawn(self) -> None:
        for episode_id in self.scheduler.withdrawals():
            self.scheduler.withdrawn(episode_id)
            del self.running[episode_id]
            self.ended[episode_id] = "withdrawn"
        assert self.scheduler.withdrawals() == []

    # --- what the learner does ---

    @rule()
    def the_learner_wants_a_batch(self) -> None:
        self.take()

    @precondition(lambda self: self.learning)
    @rule()
    def the_learner_is_done(self) -> None:
        self.learning = False
        self.scheduler.pushed(self.scheduler.version + 1)

    # --- what must hold ---

    @invariant()
    def what_runs_is_known_on_both_sides(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.running == len(self.running)

    @invariant()
    def no_group_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            in_flight = {group.id for group in self.scheduler.groups}
            rules = self.rules
            most = (rules.max_staleness + 1) * rules.groups_per_step + rules.oversample + rules.refill
            assert len(in_flight) <= most
            assert all(self.left[name] == 0 for name in in_flight)

    def teardown(self) -> None:
        """From anywhere, as long as episodes end or are overdue, the next steps get their batches."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4):
            if self.learning:
                self.the_learner_is_done()
            for _round in range(200):
                if self.take() is not None:
                    break
                self.a_desktop_is_free()
                self.the_shell_stops_what_was_withdrawn()
                for episode_id in [name for name in self.running if name not in self.hung]:
                    self.end(episode_id, True, 1.0)
                if self.can_tell_overdue:
                    self.now += 1.0
                else:  # nobody knows how long an episode takes: the time-outs of its environment end it
                    self.hung.clear()
            else:
                pytest.fail("a step never got its batch")
        self.every_group_left_once()

    def every_group_left_once(self) -> None:
        in_flight = {group.id for group in self.scheduler.groups}
        gone = set(self.opened) - in_flight - set(self.left)
        if not self.rules.oversample:
            assert not gone
        assert all(count == 1 for count in self.left.values())

    @property
    def can_tell_overdue(self) -> bool:
        return self.rules.overdue_factor is not None and list(self.ended.values()).count("valid") >= 8

    def end(self, episode_id: str, valid: bool, score: float) -> None:
        self.sample(episode_id)
        episode = self.running.pop(episode_id)
        self.ended[episode_id] = "valid" if valid else "invalid"
        group = self.scheduler.ended(
            a_trajectory(episode, valid=valid, version=self.sampled[episode_id], score=score)
        )
        if group is not None:
            assert group.id == episode.group_id
            assert group.closed

    def sample(self, episode_id: str) -> None:
        if episode_id not in self.sampled:
            self.sampled[episode_id] = self.scheduler.version
            self.scheduler.began(episode_id)

    def take(self) -> Batch | None:
        version = self.scheduler.version
        batch = self.scheduler.take(self.now)
        if batch is None:
            return None
        assert not self.learning
        self.learning = True
        assert len(batch.groups) == self.rules.groups_per_step
        assert [g.number for g in batch.groups] == sorted(g.number for g in batch.groups)
        for group in [*batch.groups, *batch.spare]:
            self.left[group.id] += 1
            self.check(group)
        for group in batch.groups:
            for trajectory in group.trajectories:
                assert version - trajectory.policy_version <= self.rules.max_staleness
        return batch

    def check(self, group: Group) -> None:
        assert group.closed
        assert len(group.trajectories) + len(group.lost) == group.size
        assert group.retries <= self.rules.max_retries * group.size
        for trajectory in group.trajectories:
            assert trajectory.valid
            assert trajectory.group_id == group.id
            assert trajectory.task_id == group.task.id
            assert self.ended[trajectory.episode_id] == "valid"


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    desktops=st.integers(1, 12),
    group_size=st.integers(1, 4),
    groups_per_step=st.integers(1, 3),
    max_staleness=st.integers(0, 3),
    oversample=st.sampled_from([0, 0, 0, 1]),
    refill=st.sampled_from([0, 0, 2]),
    overdue_factor=st.sampled_from([None, 3.0]),
    faults=st.sampled_from([0.0, 0.1]),
)
def test_a_run_with_a_heavy_tail_takes_all_its_steps(
    seed: int, desktops: int, overdue_factor: float | None, faults: float, **rules: int
) -> None:
    """The same claims over long runs, in which every episode and every learner step takes its time."""
    rng = random.Random(seed)
    run = Rollouts()
    run.begin(**rules, max_retries=2, overdue_factor=overdue_factor, early_close_share=0.5)
    ends: dict[str, float] = {}
    learner_done = 0.0
    steps = 0
    while steps < 30:
        for _ in range(desktops - len(run.running)):
            run.a_desktop_is_free()
        for episode_id in run.running.keys() - ends.keys():
            hangs = overdue_factor is not None and run.can_tell_overdue and rng.random() < 0.02
            ends[episode_id] = run.now + (float("inf") if hangs else rng.paretovariate(1.5))
            if rng.random() < 0.9:
                run.sample(episode_id)
        if not run.learning and run.take() is not None:
            steps += 1
            learner_done = run.now + rng.uniform(0.0, 1.0)
        run.the_shell_stops_what_was_withdrawn()
        ends = {name: at for name, at in ends.items() if name in run.running}
        upcoming = [*ends.values(), *([learner_done] if run.learning else [])]
        overdue = run.scheduler.overdue_at(run.now)
        at = min([*upcoming, *([overdue] if overdue is not None else [])], default=run.now)
        if len(run.running) < desktops and at == float("inf"):
            continue  # what was withdrawn is run again
        run.now = max(run.now, at)
        assert run.now < float("inf"), "nothing will ever happen any more"
        for episode_id in [name for name, end in ends.items() if end <= run.now]:
            run.end(episode_id, rng.random() >= faults, float(rng.random() < 0.5))
            del ends[episode_id]
        if run.learning and learner_done <= run.now:
            run.the_learner_is_done()
        run.what_runs_is_known_on_both_sides()
        run.no_group_is_lost()
    run.every_group_left_once()


def of_set(tasks: int = 1, size: int = 1, retries: int = 0, seed: int = 0) -> Scheduler:
    names = [a_task(f"t{i}") for i in range(tasks)]
    return Scheduler.of_set(names, label="s", group_size=size, max_retries=retries, seed=seed)


def all_of(scheduler: Scheduler) -> list[Episode]:
    return list(iter(lambda: scheduler.next(0.0), None))


def test_an_invalid_episode_is_run_again_before_others_and_given_up_after_its_retries() -> None:
    scheduler = of_set(tasks=2, retries=1)
    first = scheduler.next(0.0)
    assert first is not None
    assert scheduler.ended(a_trajectory(first, valid=False)) is None
    again = scheduler.next(0.0)
    assert again is not None
    assert again.id == first.id + "-retry1"
    group = scheduler.ended(a_trajectory(again, valid=False))
    assert group is not None
    assert (len(group.lost), group.retries, group.trajectories) == (1, 1, [])


def test_the_retries_of_a_group_are_shared_by_its_places() -> None:
    scheduler = of_set(size=2, retries=2)
    unlucky, lucky = all_of(scheduler)
    scheduler.ended(a_trajectory(lucky))
    for _ in range(4):
        scheduler.ended(a_trajectory(unlucky, valid=False))
        (unlucky,) = all_of(scheduler)
    group = scheduler.ended(a_trajectory(unlucky))
    assert group is not None
    assert (len(group.trajectories), group.retries, len(group.lost)) == (2, 4, 0)


def test_an_episode_cannot_end_twice() -> None:
    scheduler = of_set(size=2)
    episode = scheduler.next(0.0)
    assert episode is not None
    scheduler.ended(a_trajectory(episode))
    with pytest.raises(KeyError):
        scheduler.ended(a_trajectory(episode))


def test_seeds_repeat_with_the_run_and_differ_between_places() -> None:
    def seeds(seed: int) -> list[int]:
        return [e.seed for e in all_of(of_set(size=4, seed=seed))]

    assert seeds(1) == seeds(1)
    assert seeds(1) != seeds(2)
    assert len(set(seeds(1))) == 4


def ahead(max_staleness: int, **rules: float) -> Scheduler:
    """Two groups of two a step."""
    return Scheduler(
        endless(TASKS),
        SchedulerRules(2, 2, max_retries=1, seed=0, max_staleness=max_staleness, **rules),  # type: ignore[arg-type]
        label="s",
    )


def finish(scheduler: Scheduler, episode: Episode, version: int) -> None:
    scheduler.began(episode.id)
    scheduler.ended(a_trajectory(episode, version=version))


def test_on_policy_nothing_begins_while_the_learner_learns() -> None:
    scheduler = ahead(0)
    episodes = all_of(scheduler)
    assert len(episodes) == 4
    for episode in episodes:
        finish(scheduler, episode, 0)
    assert scheduler.take(0.0) is not None
    assert scheduler.next(0.0) is None
    scheduler.pushed(1)
    assert len(all_of(scheduler)) == 4


def test_ahead_by_one_the_desktops_go_on_while_the_learner_learns_and_stop_where_it_would_be_too_old() -> (
    None
):
    scheduler = ahead(1)
    episodes = all_of(scheduler)
    assert len(episodes) == 8
    for episode in episodes[:4]:
        finish(scheduler, episode, 0)
    assert scheduler.take(0.0) is not None
    assert scheduler.next(0.0) is None
    scheduler.pushed(1)
    assert len(all_of(scheduler)) == 4


def test_a_step_waits_for_a_group_that_would_be_too_old_at_the_next_and_for_no_other() -> None:
    scheduler = ahead(1)
    first, *others = all_of(scheduler)
    scheduler.began(first.id)
    for episode in others:
        finish(scheduler, episode, 0)
    batch = scheduler.take(0.0)  # the slow one is of version 0, which the step after this one may still have
    assert batch is not None
    assert first.group_id not in {group.id for group in batch.groups}
    scheduler.pushed(1)
    for episode in all_of(scheduler):
        finish(scheduler, episode, 1)
    assert scheduler.take(0.0) is None
    scheduler.ended(a_trajectory(first, version=0))
    batch = scheduler.take(0.0)
    assert batch is not None
    assert first.group_id in {group.id for group in batch.groups}


def test_an_overdue_episode_is_stopped_and_its_group_goes_without_it() -> None:
    scheduler = ahead(0, overdue_factor=3.0)
    for version in range(2):
        for episode in all_of(scheduler):
            finish(scheduler, episode, version)
        assert scheduler.take(0.0) is not None
        scheduler.pushed(version + 1)
    stuck, *others = all_of(scheduler)
    scheduler.began(stuck.id)
    for episode in others:
        finish(scheduler, episode, 2)
    assert scheduler.take(2.9) is None
    assert scheduler.overdue_at(2.9) == 3.0
    batch = scheduler.take(3.0)
    assert batch is not None
    assert [(len(g.trajectories), len(g.lost)) for g in batch.groups] == [(1, 1), (2, 0)]
    assert scheduler.withdrawals() == [stuck.id]
    scheduler.withdrawn(stuck.id)
    assert scheduler.running == 0


def test_what_waits_for_the_engine_is_not_overdue_however_long_that_takes() -> None:
    scheduler = ahead(0, overdue_factor=3.0)
    for version in range(2):
        for episode in all_of(scheduler):
            finish(scheduler, episode, version)
        scheduler.take(0.0)
        scheduler.pushed(version + 1)
    slow, *others = all_of(scheduler)
    scheduler.began(slow.id)
    for episode in others:
        finish(scheduler, episode, 2)
    scheduler.asked(slow.id, 1.0)
    assert scheduler.take(60.0) is None
    assert scheduler.overdue_at(60.0) is None
    scheduler.answered(slow.id, 71.0)
    assert scheduler.take(72.9) is None
    assert scheduler.overdue_at(72.9) == 73.0
    assert scheduler.take(73.0) is not None


def test_with_too_few_of_its_trajectories_a_group_runs_the_overdue_ones_again() -> None:
    scheduler = ahead(0, overdue_factor=3.0, early_close_share=1.0)
    for version in range(2):
        for episode in all_of(scheduler):
            finish(scheduler, episode, version)
        scheduler.take(0.0)
        scheduler.pushed(version + 1)
    stuck, *others = all_of(scheduler)
    for episode in others:
        finish(scheduler, episode, 2)
    assert scheduler.take(3.0) is None
    assert scheduler.withdrawals() == [stuck.id]
    scheduler.withdrawn(stuck.id)
    again = scheduler.next(3.0)
    assert again is not None
    assert again.id == stuck.id + "-retry1"
    finish(scheduler, again, 2)
    batch = scheduler.take(3.0)
    assert batch is not None
    assert [len(g.trajectories) for g in batch.groups] == [2, 2]


def test_groups_that_teach_nothing_are_replaced_so_many_times_a_step() -> None:
    scheduler = Scheduler(
        endless(TASKS),
        SchedulerRules(2, 1, max_retries=0, seed=0, refill=2),
        label="s",
        learns=lambda group: len({t.score for t in group.trajectories}) > 1,
    )
    for _ in range(3):
        for episode in all_of(scheduler):
            finish(scheduler, episode, 0)
    batch = scheduler.take(0.0)
    assert batch is not None
    assert [g.number for g in batch.spare] == [0, 1]
    assert [g.number for g in batch.groups] == [2]


def test_of_groups_rolled_out_beyond_need_the_first_to_close_are_taken_and_the_last_is_stopped() -> None:
    scheduler = ahead(0, oversample=1)
    slow, *others = all_of(scheduler)
    assert len(others) == 5
    scheduler.began(slow.id)
    for episode in others:
        finish(scheduler, episode, 0)
    batch = scheduler.take(0.0)
    assert batch is not None
    assert [g.number for g in batch.groups] == [1, 2]
    assert scheduler.withdrawals() == [slow.id]


def test_all_tasks_are_begun_equally_often() -> None:
    scheduler = ahead(2)
    begun: Counter[str] = Counter()
    for version in range(25):
        for episode in all_of(scheduler):
            begun[episode.task.id] += 1
            finish(scheduler, episode, version)
        scheduler.take(0.0)
        scheduler.pushed(version + 1)
    assert max(begun.values()) - min(begun.values()) <= 2  # one group


def test_the_last_steps_open_no_groups_that_nobody_would_take() -> None:
    scheduler = Scheduler(
        endless(TASKS), SchedulerRules(2, 2, max_retries=0, seed=0, max_staleness=3), label="s", batches=2
    )
    episodes = all_of(scheduler)
    assert len(episodes) == 8
    for episode in episodes:
        finish(scheduler, episode, 0)
    for version in (1, 2):
        assert scheduler.take(0.0) is not None
        scheduler.pushed(version)
        assert scheduler.next(0.0) is None


def test_groups_in_flight_go_on_where_another_process_left_them() -> None:
    scheduler = ahead(1)
    first, second, *_ = all_of(scheduler)
    finish(scheduler, first, 0)
    pending = scheduler.pending()
    assert [(p.number, p.task_id, p.ended) for p in pending][:2] == [(0, "t0", (first.id,)), (1, "t1", ())]
    again = Scheduler(
        endless(TASKS),
        SchedulerRules(2, 2, max_retries=1, seed=0, max_staleness=1),
        label="s",
        version=1,
        pending=[
            Begun(p.number, a_task(p.task_id), [a_trajectory(first, version=0)] if p.ended else [])
            for p in pending
        ],
        first_number=scheduler.first_number,
    )
    episodes = all_of(again)
    assert episodes[0] == second
    assert len(episodes) == 7
    assert all(episode.id != first.id for episode in episodes)
    for episode in episodes[1:]:
        finish(again, episode, 1)
    assert again.take(0.0) is None  # the group of version 0 is due
    finish(again, second, 1)
    batch = again.take(0.0)
    assert batch is not None
    assert 0 in {group.number for group in batch.groups}


def test_an_older_version_than_the_present_one_is_refused() -> None:
    scheduler = ahead(0)
    scheduler.pushed(3)
    with pytest.raises(ValueError, match="version 2 pushed after 3"):
        scheduler.pushed(2)
