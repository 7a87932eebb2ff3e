"""How busy desktops and engine are under three ways of scheduling, simulated on a virtual clock, all in one run.

    python benchmarks/scheduling.py                           # 4, 64, 256 and 1024 desktops
    python benchmarks/scheduling.py --desktops 256 --batch 1  # as many trajectories a step as desktops, as in the paper
    python benchmarks/scheduling.py --json

Ways
  lock-step      the predecessor's: all desktops reset together, wait for the slowest, then act turn by turn, each turn
                 waiting for the slowest reply and the slowest desktop; all are evaluated; then the learner learns while
                 they wait. A fault leaves its place empty.
  group-barrier  a group's desktops take the next group when the last of them is done, and all wait for the learner.
  ours           `arpo.rollout.scheduler.Scheduler` itself, with `rollout.max_staleness` 0, 1 and 2, and with 1 and
                 `rollout.oversample` of one group in 16, at least one (`--oversample`).

The world is the same for all three, drawn anew from the seed: a reset takes 1 to 60 s and a step 0.3 to 5 s (log-normal,
cut there), one step in 200 has a tail (Pareto, up to 120 s), an evaluation 1 to 10 s. An episode takes 3 to 15 steps. 2 %
of the episodes end in a fault; a fifth of those hang until the step's time-out of 120 s. A reply is 1 s of an idle
engine's time on average; the engine works on all replies at once, each the slower the more there are, and all in all never
faster than `desktops / 2` of them alone. The learner takes 0.1 s a trajectory for up to 64 desktops and grows with the
cluster beyond; a push takes 2 s.

env      share of the desktops' time in which a desktop acted for its episode or its reply was being sampled: neither empty,
         nor waiting for other desktops
engine   share of the time in which the engine had work
stale    policy versions between sampling (the oldest token) and learning, mean and most, of the trajectories learned from
spare    valid episodes, a step, of groups that `oversample` left behind: they are recorded, and not learned from
lost     episodes that ended valid and are in no batch, in no spare group and in none in flight
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import fmean

from measuring import positive

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.rollout.groups import Episode
from arpo.rollout.rules import SchedulerRules
from arpo.rollout.scheduler import Scheduler
from arpo.rollout.usage import Usage
from arpo.tasks.model import Evaluator, Task
from arpo.trajectory import Trajectory, Turn

GROUP = 8
PUSH_S = 2.0
TIMEOUT_S = 120.0
FAULTS, HANGS = 0.02, 0.2
TASKS = [Task(id=f"t{i}", instruction="x", evaluator=Evaluator(func="infeasible")) for i in range(128)]


@dataclass(frozen=True)
class Script:
    """What an episode will take. replies: seconds of an idle engine; fails_after: steps, None: it does not."""

    reset: float
    replies: list[float]
    steps: list[float]
    evaluate: float
    fails_after: int | None


def script(rng: random.Random) -> Script:
    """One episode of the world that is described above."""

    def between(low: float, high: float, median: float) -> float:
        return min(high, max(low, rng.lognormvariate(math.log(median), 0.8)))

    turns = rng.randint(3, 15)
    steps = [between(0.3, 5.0, 1.0) for _ in range(turns)]
    steps = [min(TIMEOUT_S, 5.0 * rng.paretovariate(1.1)) if rng.random() < 1 / 200 else s for s in steps]
    fails_after = rng.randrange(turns) if rng.random() < FAULTS else None
    if fails_after is not None and rng.random() < HANGS:
        steps[fails_after] = TIMEOUT_S
    return Script(
        reset=between(1.0, 60.0, 8.0),
        replies=[rng.lognormvariate(-0.125, 0.5) for _ in range(turns)],
        steps=steps,
        evaluate=between(1.0, 10.0, 2.0),
        fails_after=fails_after,
    )


class World:
    """A virtual clock, and an engine that many replies share."""

    def __init__(self, desktops: int) -> None:
        self.now = 0.0
        self._capacity = desktops / 2
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._replies: list[tuple[float, int, Callable[[], None]]] = []
        self._work = 0.0
        self._order = itertools.count()
        self.usage = Usage(desktops, clock=lambda: self.now)

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Call it when so much time has passed."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def reply(self, seconds: float, then: Callable[[], None]) -> None:
        """Call it when the engine has done so much work for this reply."""
        self.usage.request(+1)
        heapq.heappush(self._replies, (self._work + seconds, next(self._order), then))

    def run(self, over: Callable[[], bool]) -> None:
        """Let things happen until it is over."""
        while not over():
            rate = 1.0 / (1.0 + len(self._replies) / self._capacity)
            at = self._events[0][0] if self._events else math.inf
            ready = self.now + (self._replies[0][0] - self._work) / rate if self._replies else math.inf
            now = min(at, ready)
            assert now < math.inf, "nothing will ever happen any more"
            self._work += (now - self.now) * rate
            self.now = now
            if ready <= at:
                self.usage.request(-1)
                heapq.heappop(self._replies)[2]()
            else:
                heapq.heappop(self._events)[2]()


@dataclass
class Row:
    """A line of the table."""

    way: str
    desktops: int
    env: float = 0.0
    engine: float = 0.0
    per_hour: float = 0.0
    stale_mean: float = 0.0
    stale_max: int = 0
    spare: float = 0.0
    lost: int = 0
    steps: int = 0
    hours: float = 0.0


@dataclass
class Play:
    """An episode as it goes on, without barriers: reset, replies and steps, evaluation."""

    world: World
    what: Script
    began: Callable[[], None]
    ended: Callable[[bool], None]
    turn: int = field(default=0, init=False)
    stopped: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Lease the desktop."""
        self.world.usage.episode(+1)
        self.world.after(self.what.reset, self._ask)

    def stop(self) -> None:
        """Give the desktop back; `ended` is not called. A reply that is being sampled still is."""
        self.stopped = True
        self.world.usage.episode(-1)

    def _ask(self) -> None:
        if self.stopped:
            return
        if self.turn == 0:
            self.began()
        self.world.reply(
            self.what.replies[self.turn], lambda: self.world.after(self.what.steps[self.turn], self._acted)
        )

    def _acted(self) -> None:
        if self.stopped:
            return
        failed = self.what.fails_after == self.turn
        self.turn += 1
        if failed:
            self._end(False)
        elif self.turn < len(self.what.steps):
            self._ask()
        else:
            self.world.after(self.what.evaluate, lambda: self._end(True))

    def _end(self, valid: bool) -> None:
        if self.stopped:
            return
        self.world.usage.episode(-1)
        self.ended(valid)


def lock_step(desktops: int, batch: int, steps: int, seed: int) -> Row:
    """All desktops move together."""
    world, rng = World(desktops), random.Random(seed)
    valid = taken = 0

    def together(parts: list[Callable[[Callable[[], None]], None]]) -> None:
        """Begin all parts; go on when the last is done."""
        left = len(parts)

        def done() -> None:
            nonlocal left
            left -= 1
            world.usage.episode(-1)

        for part in parts:
            world.usage.episode(+1)
            part(done)
        world.run(lambda: left == 0)

    def waits(seconds: float) -> Callable[[Callable[[], None]], None]:
        return lambda done: world.after(seconds, done)

    def replies(seconds: float) -> Callable[[Callable[[], None]], None]:
        return lambda done: world.reply(seconds, done)

    for _ in range(steps):
        for _round in range(-(-batch // desktops)):
            alive = [script(rng) for _ in range(min(desktops, batch))]
            together([waits(s.reset) for s in alive])
            finished: list[Script] = []
            turn = 0
            while alive:
                together([replies(s.replies[turn]) for s in alive])
                together([waits(s.steps[turn]) for s in alive])
                finished += [s for s in alive if len(s.steps) == turn + 1 and s.fails_after != turn]
                alive = [s for s in alive if len(s.steps) > turn + 1 and s.fails_after != turn]
                turn += 1
            together([waits(s.evaluate) for s in finished])
            valid += len(finished)
        over: list[bool] = []
        world.after(learn_s(desktops, batch), lambda: over.append(True))  # noqa: B023 - run before the next one
        world.run(lambda: bool(over))  # noqa: B023
        taken += 1
    return row("lock-step", world, desktops, valid, taken, [0])


def group_barrier(desktops: int, batch: int, steps: int, seed: int) -> Row:
    """Desktops in crews of a group's size; a crew waits for its slowest, and all for the learner."""
    world, rng = World(desktops), random.Random(seed)
    size = min(GROUP, desktops)
    valid = 0
    for _ in range(steps):
        waiting = batch // GROUP
        crews = 0

        def next_group() -> None:
            nonlocal waiting, crews
            if waiting == 0:
                return
            waiting -= 1
            crews += 1
            places = list(range(GROUP))
            running = 0

            def begin() -> None:
                nonlocal running
                places.pop()
                running += 1
                Play(world, script(rng), lambda: None, ended).begin()

            def ended(ok: bool) -> None:
                nonlocal running, valid, crews
                running -= 1
                valid += ok
                if not ok:
                    places.append(0)
                if places:
                    begin()
                elif running == 0:
                    crews -= 1
                    next_group()

            for _place in range(size):
                begin()

        for _crew in range(desktops // size):
            next_group()
        world.run(lambda: crews == 0)  # noqa: B023 - over before the next step
        over: list[bool] = []
        world.after(learn_s(desktops, batch), lambda: over.append(True))  # noqa: B023
        world.run(lambda: bool(over))  # noqa: B023
    return row("group-barrier", world, desktops, valid, steps, [0])


def ours(desktops: int, batch: int, steps: int, seed: int, max_staleness: int, oversample: int = 0) -> Row:
    """The scheduler of ARPO."""
    world, rng = World(desktops), random.Random(seed)
    rules = SchedulerRules(
        GROUP, batch // GROUP, max_retries=3, seed=seed, max_staleness=max_staleness, oversample=oversample
    )
    scheduler = Scheduler(tasks(), rules, label="s")
    versions: dict[str, int] = {}
    ended: dict[str, str] = {}
    """Valid episodes, and their groups."""
    in_batch: set[str] = set()
    plays: dict[str, Play] = {}
    ages: list[int] = []
    valid = taken = 0
    learning = False

    def fill() -> None:
        for episode_id in scheduler.withdrawals():
            plays.pop(episode_id).stop()
            scheduler.withdrawn(episode_id)
        while scheduler.running < desktops and (episode := scheduler.next(world.now)) is not None:
            play(episode)

    def play(episode: Episode) -> None:
        started = world.now

        def began() -> None:
            versions[episode.id] = scheduler.version
            scheduler.began(episode.id)

        def over(ok: bool) -> None:
            del plays[episode.id]
            scheduler.ended(trajectory(episode, versions.pop(episode.id), world.now - started, ok))
            if ok:
                ended[episode.id] = episode.group_id
            learn()
            fill()

        plays[episode.id] = Play(world, script(rng), began, over)
        plays[episode.id].begin()

    def learn() -> None:
        nonlocal learning, taken, valid
        if learning:
            return
        batch_now = scheduler.take(world.now)
        if batch_now is None:
            return
        learning = True
        taken += 1
        for group in batch_now.groups:
            valid += len(group.trajectories)
            ages.extend(scheduler.version - t.policy_version for t in group.trajectories)
            in_batch.update(t.episode_id for t in group.trajectories)
        world.after(learn_s(desktops, batch), pushed)

    def pushed() -> None:
        nonlocal learning
        learning = False
        scheduler.pushed(scheduler.version + 1)
        learn()
        fill()

    fill()
    world.run(lambda: taken >= steps and not learning)
    in_flight = {t.episode_id for group in scheduler.groups for t in group.trajectories}
    left = len(ended.keys() - in_batch - in_flight)
    name = f"ours, staleness ≤ {max_staleness}" + (f", +{oversample}" if oversample else "")
    # nothing may be left behind but what `oversample` allows, and of the step's groups no more than that
    spare = min(left, oversample * GROUP * taken)
    return row(name, world, desktops, valid, taken, ages, spare / taken, left - spare)


def row(
    way: str,
    world: World,
    desktops: int,
    valid: int,
    steps: int,
    ages: list[int],
    spare: float = 0.0,
    lost: int = 0,
) -> Row:
    """What a simulation has to say."""
    used = world.usage.utilisation()
    return Row(
        way, desktops, used.desktops, used.engine, valid / (world.now / 3600), fmean(ages), max(ages), spare, lost, steps,
        world.now / 3600,
    )  # fmt: skip


def learn_s(desktops: int, batch: int) -> float:
    """Seconds of a learner step and the push after it; the learner grows with the cluster."""
    return 0.1 * batch * 64 / max(64, desktops) + PUSH_S


def tasks() -> Iterator[Task]:
    """All tasks, again and again."""
    return itertools.cycle(TASKS)


def trajectory(episode: Episode, version: int, duration_s: float, valid: bool) -> Trajectory:
    """A record of one token: the scheduler asks for no more."""
    turn = Turn.model_construct(start=0, end=1, policy_version=version, pushes=[])
    problem = None if valid else ProblemError(ProblemCode.DESKTOP_LOST, "gone").problem
    return Trajectory.model_construct(
        episode_id=episode.id, group_id=episode.group_id, task_id=episode.task.id, turns=[turn],
        score=0.0 if valid else None, problem=problem, duration_s=duration_s,
    )  # fmt: skip


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--desktops", type=positive, nargs="+", default=[4, 64, 256, 1024])
    parser.add_argument(
        "--batch", type=float, default=4.0, help="trajectories a step, as a multiple of desktops"
    )
    parser.add_argument(
        "--oversample", type=float, default=1 / 16, help="groups more than a step needs, as a share of those"
    )
    parser.add_argument("--steps", type=positive, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = parser.parse_args()
    rows: list[Row] = []
    for desktops in chosen.desktops:
        batch = max(GROUP, round(desktops * chosen.batch / GROUP) * GROUP)
        of_size = [lock_step(desktops, batch, chosen.steps, chosen.seed)]
        of_size.append(group_barrier(desktops, batch, chosen.steps, chosen.seed))
        of_size += [ours(desktops, batch, chosen.steps, chosen.seed, ahead) for ahead in (0, 1, 2)]
        more = round(batch / GROUP * chosen.oversample) or 1
        of_size.append(ours(desktops, batch, chosen.steps, chosen.seed, 1, more))
        if not chosen.json:
            print(f"\n{desktops} desktops, {batch} trajectories a step ({batch // GROUP} groups of {GROUP})")
            print(
                f"{'':22}{'env':>7}{'× lock':>8}{'engine':>8}{'traj./h':>10}{'stale':>12}{'spare':>8}{'lost':>6}"
            )
            for one in of_size:
                print(
                    f"{one.way:22}{one.env:7.3f}{one.env / of_size[0].env:8.2f}{one.engine:8.3f}{one.per_hour:10.0f}"
                    f"{one.stale_mean:7.2f} /{one.stale_max:3d}{one.spare:8.1f}{one.lost:6d}"
                )
        rows += of_size
    if chosen.json:
        print(json.dumps([asdict(one) for one in rows], indent=2))


if __name__ == "__main__":
    main()
