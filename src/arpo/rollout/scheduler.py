"""Which episode runs next, when a group closes, and when a step has its batch. A pure state machine: it owns no tasks,
sockets or clocks; whoever drives it tells it the time.

Invariants
- Every episode that `next` hands out is answered by exactly one `ended` or `withdrawn`, and is in no group but its own.
- Every group that is opened leaves exactly once: in a batch, as a spare, or at the end unfinished. None is mixed with
  another; a closed one holds only valid trajectories, one a place.
- No trajectory in a batch was sampled by a policy older than `version` - `max_staleness`, by any of its tokens.
- As long as episodes end, or are overdue and may be withdrawn, a step gets its batch.

Why the third holds. Call v the version of the policy now, and the due date of a group the oldest version that sampled any
of it plus `max_staleness`: it must be in the batch that is taken at that version, at the latest. At most
(max_staleness + 1) · groups_per_step groups are in flight, so when all of them are due together there are just enough
batches left; and a batch is taken only if, for every date d, no more than (d - v) · groups_per_step of the groups that
stay behind are due by then. Otherwise the step waits for the older ones, while the desktops begin newer ones.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from arpo.rollout.groups import Batch, Begun, Episode, Group, Pending
from arpo.rollout.overdue import Durations, Running
from arpo.rollout.rules import SchedulerRules
from arpo.tasks.model import Task
from arpo.trajectory import Trajectory

_MOST_OUTAGES = 20
"""Episodes of a group, for each of its places, that an outage of the env-server costs no retry; a task that takes its
server down is not run for ever."""


class Scheduler:
    """Hands out episodes of groups opened one after the other, and batches of closed groups.

    tasks: of the groups to open, in order; may be endless. version: of the policy. batches: that will be taken; None: no
    end is known. pending: groups of an earlier process to begin with; spare: those that the next batch hands over as such;
    first_number: of the first group after those.
    learns: whether a closed group can teach anything (see `refill`).
    Episode seeds depend on the seed, the group's number and task, and the place alone, so a run repeats whatever the
    timing was.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        rules: SchedulerRules,
        *,
        label: str,
        version: int = 0,
        batches: int | None = None,
        pending: Sequence[Begun] = (),
        spare: Sequence[Begun] = (),
        first_number: int = 0,
        learns: Callable[[Group], bool] = lambda group: True,
    ) -> None:
        self._tasks = tasks
        self._rules = rules
        self._label = label
        self._version = version
        self._batches_left = batches
        self._learns = learns
        self._number = first_number
        self._exhausted = False
        self._learning = False
        self._live: dict[str, Group] = {}
        # of every group in flight the version that sampled the first token, by place
        self._sampled: dict[str, dict[int, int]] = {}
        self._spare = [self._group(begun) for begun in spare]
        self._refilled = len(self._spare)
        self._waiting: deque[tuple[Group, int]] = deque()
        self._running: dict[str, Running] = {}
        self._leaving: set[str] = set()
        self._to_withdraw: list[str] = []
        self._durations = Durations(rules)
        self._away_since: float | None = None
        self._queued = deque(pending)
        while self._queued and self._open_next():
            pass

    @classmethod
    def of_set(
        cls, tasks: Sequence[Task], *, label: str, group_size: int, max_retries: int, seed: int
    ) -> Scheduler:
        """One batch, of a group for every task, whatever policy samples them: an evaluation."""
        rules = SchedulerRules(group_size, len(tasks), max_retries, seed, max_staleness=None)
        return cls(iter(tasks), rules, label=label, batches=1)

    @property
    def version(self) -> int:
        """Of the policy that samples now."""
        return self._version

    @property
    def running(self) -> int:
        """Episodes that were handed out and have not ended."""
        return len(self._running)

    @property
    def groups(self) -> list[Group]:
        """Those that are open, or closed and in no batch yet."""
        return [*self._live.values(), *self._spare]

    @property
    def first_number(self) -> int:
        """The number of the next group that is opened."""
        return self._number

    def pending(self) -> list[Pending]:
        """What a checkpoint needs to go on with the groups in flight."""
        queued = [self._group(begun) for begun in self._queued]
        return [_pending(g, spare=any(g is s for s in self._spare)) for g in [*queued, *self.groups]]

    def next(self, now: float) -> Episode | None:
        """The next episode to run, or None when there is nothing to do now. now: in seconds, from any beginning.

        Places of older groups come first, and in them those whose environment failed; then a new group is opened.
        """
        while not self._waiting:
            if not self._open_next():
                return None
        group, place = self._waiting.popleft()
        attempt = group.attempts[place]
        episode_id = f"{group.id}/{place}" + (f"-retry{attempt}" if attempt else "")
        self._running[episode_id] = Running(episode_id, group, place, started=now)
        seed = random.Random(f"{self._rules.seed}/{group.id}/{place}/{attempt}").getrandbits(48)  # noqa: S311 - no secret
        return Episode(id=episode_id, group_id=group.id, task=group.task, seed=seed)

    def began(self, episode_id: str) -> None:
        """Its first token is about to be sampled, by the policy as it is now. Raises KeyError when it is not running."""
        running = self._running[episode_id]
        if episode_id not in self._leaving:
            self._sampled[running.group.id][running.place] = self._version

    def asked(self, episode_id: str, now: float) -> None:
        """It waits for the engine from now on. Raises KeyError when it is not running."""
        self._running[episode_id].asked = now

    def answered(self, episode_id: str, now: float) -> None:
        """It has its reply. Raises KeyError when it is not running."""
        running = self._running[episode_id]
        if running.asked is not None:
            running.started += now - running.asked
            running.asked = None

    def away(self, now: float) -> None:
        """The env-server does not answer from now on: nothing is overdue until `back`."""
        if self._away_since is None:
            self._away_since = now

    def back(self, now: float) -> None:
        """It answers again; no episode has used the time in between."""
        since, self._away_since = self._away_since, None
        if since is not None:
            for running in self._running.values():
                running.started += max(0.0, now - max(since, running.started))

    def ended(self, trajectory: Trajectory, *, outage: bool = False) -> Group | None:
        """Take an episode's trajectory; returns its group if that closed it.

        outage: it is invalid because the env-server could not be reached, which is not held against its group.
        Raises KeyError for an episode that is not running.
        """
        running = self._running.pop(trajectory.episode_id)
        group, place = running.group, running.place
        if trajectory.episode_id in self._leaving:
            self._leaving.remove(trajectory.episode_id)
            return None
        if trajectory.valid:
            self._fill(group, place, trajectory)
            self._durations.add(trajectory)
        else:
            self._again(group, place, outage=outage)
        if not group.closed:
            return None
        self._closed(group)
        return group

    def withdrawn(self, episode_id: str) -> None:
        """An episode of `withdrawals` was stopped. Raises KeyError when it is not running or was to go on."""
        self._leaving.remove(episode_id)
        del self._running[episode_id]

    def withdrawals(self) -> list[str]:
        """Episodes that nobody waits for any more and that are to be stopped; each is named once."""
        stopped, self._to_withdraw = self._to_withdraw, []
        return [episode_id for episode_id in stopped if episode_id in self._running]

    def pushed(self, version: int) -> None:
        """The engine has a newer policy. Raises ValueError when it is older."""
        if version < self._version:
            raise ValueError(f"version {version} pushed after {self._version}")
        self._version = version
        self._learning = False

    def take(self, now: float) -> Batch | None:
        """The batch of the next step, or None as long as there is none. Groups that are in it have left.

        A learner takes its next batch when it has pushed what it made of the last one; there is none before.
        """
        if self._learning:
            return None
        batch = self._chosen()
        if batch is None and self._close_early(now):
            batch = self._chosen()
        if batch is None:
            return None
        for group in [*batch, *self._overtaken(batch)]:
            self._leave(group)
        self._learning = self._rules.max_staleness is not None
        if self._batches_left is not None:
            self._batches_left -= 1
        spare, self._spare, self._refilled = self._spare, [], 0
        return Batch(groups=sorted(batch, key=_number), spare=sorted(spare, key=_number))

    def overdue_at(self, now: float) -> float | None:
        """When a group that holds the step up can be closed early, if nothing ends before; None: that is never."""
        limit = self._overdue_s()
        if limit is None:
            return None
        waited_for = (r.started + limit for r in self._running.values() if r.asked is None)
        return min((at for at in waited_for if at > now), default=None)

    # --- groups ---

    @property
    def _most(self) -> int:
        """Groups that may be in flight; the batch that the learner has in hand counts as one."""
        rules = self._rules
        batches = 1 + (rules.max_staleness or 0) - self._learning
        if self._batches_left is not None:
            batches = min(batches, self._batches_left)
        return batches * rules.groups_per_step + rules.oversample if batches else 0

    def _open_next(self) -> bool:
        if len(self._live) >= self._most:
            return False
        if self._queued:
            self._open(self._queued.popleft())
            return True
        if self._exhausted:
            return False
        task = next(self._tasks, None)
        if task is None:
            self._exhausted = True
            return False
        self._open(Begun(self._number, task))
        self._number += 1
        return True

    def _open(self, begun: Begun) -> None:
        group = self._group(begun)
        self._live[group.id] = group
        self._sampled[group.id] = {place: t.policy_version for place, t in group.places.items() if t.turns}
        decided = group.places.keys() | group.lost
        self._waiting.extend((group, place) for place in range(group.size) if place not in decided)

    def _group(self, begun: Begun) -> Group:
        """A group with what is there of it."""
        return Group(
            id := f"{self._label}/{begun.number:06d}-{begun.task.id}",
            begun.number,
            begun.task,
            self._rules.group_size,
            places=dict(_places(id, begun.trajectories)),
            attempts=Counter(dict(enumerate(begun.attempts))),
            lost=set(begun.lost),
            outages=begun.outages,
        )

    def _fill(self, group: Group, place: int, trajectory: Trajectory) -> None:
        group.places[place] = trajectory
        if trajectory.turns:
            self._sampled[group.id][place] = trajectory.policy_version

    def _again(self, group: Group, place: int, *, outage: bool = False) -> None:
        """Run a place again, if the group has retries left or needs none."""
        self._sampled[group.id].pop(place, None)
        if outage and group.outages < _MOST_OUTAGES * group.size:
            group.outages += 1
        elif group.retries >= self._rules.max_retries * group.size:
            group.lost.add(place)
            return
        group.attempts[place] += 1
        self._waiting.appendleft((group, place))

    def _closed(self, group: Group) -> None:
        """A group that teaches nothing makes room for another one, `refill` times a step."""
        if self._refilled < self._rules.refill and not self._learns(group):
            self._refilled += 1
            self._spare.append(group)
            self._leave(group)

    def _leave(self, group: Group) -> None:
        """The group is in flight no more; its episodes that still run are for nothing."""
        del self._live[group.id], self._sampled[group.id]
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not group)
        for running in self._running.values():
            if running.group is group:
                self._withdraw(running)

    def _withdraw(self, running: Running) -> None:
        if running.id not in self._leaving:
            self._leaving.add(running.id)
            self._to_withdraw.append(running.id)

    # --- batches ---

    def _due(self, group: Group) -> float:
        """The version at which the group must be taken at the latest; infinite before anything of it was sampled."""
        ahead = self._rules.max_staleness
        if ahead is None:
            return float("inf")
        return min(self._sampled[group.id].values(), default=float("inf")) + ahead

    def _dues(self) -> Mapping[str, float]:
        return {group.id: self._due(group) for group in self._live.values()}

    def _chosen(self) -> list[Group] | None:
        """A batch that leaves no group behind that would then be too old; of those, the one with the oldest groups.

        Groups that have nothing go as early as they may: they are in the place of groups that could be opened.
        """
        needed = self._rules.groups_per_step
        closed = [group for group in self._live.values() if group.closed]
        if self._finished:
            needed = min(needed, len(closed)) or needed
        if len(closed) < needed:
            return None
        due = self._dues()
        empty = [group for group in closed if not group.places]
        full = sorted((g for g in closed if g.places), key=lambda group: (due[group.id], group.number))
        for number in range(min(needed, len(empty)), max(0, needed - len(full)) - 1, -1):
            batch = empty[:number] + full[: needed - number]
            left = [due[group.id] for group in self._left(batch)]
            if len(batch) == needed and self._in_time(left):
                return batch
        return None

    def _left(self, batch: Sequence[Group]) -> list[Group]:
        """The groups in flight that are not in the batch."""
        chosen = set(batch)
        return [group for group in self._live.values() if group not in chosen]

    @property
    def _finished(self) -> bool:
        """No group is open, and none will be."""
        return self._exhausted and all(group.closed for group in self._live.values())

    def _in_time(self, left: Sequence[float]) -> bool:
        """Whether groups with these due dates can all be taken in time, in batches after the present one.

        As many may be left behind for good as were opened beyond need.
        """
        late = 0
        for place, due in enumerate(sorted(left)):
            batches = due - self._version
            if batches < float("inf") and place - late >= batches * self._rules.groups_per_step:
                late += 1
        return late <= self._rules.oversample

    def _overtaken(self, batch: Sequence[Group]) -> list[Group]:
        """Groups that are too old after this batch, of which `oversample` allows some; the closed ones become spare.

        On-policy that is all of them: what is begun while the learner learns would be too old as well.
        """
        due, on_policy = self._dues(), self._rules.max_staleness == 0
        late = [group for group in self._left(batch) if on_policy or due[group.id] <= self._version]
        self._spare += [group for group in late if group.closed]
        return late

    # --- overdue episodes ---

    def _overdue_s(self) -> float | None:
        """From which age on an episode is overdue; None as long as nobody can tell, or the env-server is away."""
        return None if self._away_since is not None else self._durations.limit()

    def _close_early(self, now: float) -> bool:
        """Stop the overdue episodes that the step waits for; whether there were any.

        These are the ones of groups that alone hold it up and wait for nothing else, or all of them when nothing else runs.
        A group goes with the trajectories that it has, if they are `early_close_share` of its places; else its overdue
        episodes are run again.
        """
        limit = self._overdue_s()
        if limit is None:
            return False
        active = [running for running in self._running.values() if running.id not in self._leaving]
        overdue = [running for running in active if running.overdue(limit, now)]
        if len(overdue) < len(active):
            hopeful = [running.group for running in active if not running.overdue(limit, now)]
            groups = [
                group for group in self._holding_up() if group not in hopeful and not self._waits(group)
            ]
            overdue = [running for running in overdue if running.group in groups]
        for group in {running.group.id: running.group for running in overdue}.values():
            self._stop(group, [running for running in overdue if running.group is group])
        return bool(overdue)

    def _holding_up(self) -> list[Group]:
        """The open groups that a batch needs, if it needs nothing else."""
        due = self._dues()
        oldest = sorted(self._live.values(), key=lambda group: (due[group.id], group.number))
        needed = self._rules.groups_per_step
        still_open = [group for group in oldest[:needed] if not group.closed]
        closed = sum(group.closed for group in oldest)
        return still_open if closed + len(still_open) >= needed else []

    def _waits(self, group: Group) -> bool:
        """Whether some of its episodes are still to be begun."""
        return any(waiting is group for waiting, _ in self._waiting)

    def _stop(self, group: Group, overdue: Sequence[Running]) -> None:
        """Stop overdue episodes of a group, and decide what becomes of their places."""
        enough = len(group.places) >= self._rules.early_close_share * group.size and not self._waits(group)
        for running in overdue:
            self._withdraw(running)
            if enough:
                self._sampled[group.id].pop(running.place, None)
                group.lost.add(running.place)
            else:
                self._again(group, running.place)
        if group.closed:
            self._closed(group)


def _number(group: Group) -> int:
    return group.number


def _places(group_id: str, trajectories: Sequence[Trajectory]) -> Iterator[tuple[int, Trajectory]]:
    """Recorded trajectories of a group with the places that their ids name."""
    for trajectory in trajectories:
        yield int(trajectory.episode_id.removeprefix(f"{group_id}/").partition("-")[0]), trajectory


def _pending(group: Group, *, spare: bool) -> Pending:
    return Pending(
        group.number,
        group.task.id,
        tuple(t.episode_id for t in group.trajectories),
        spare,
        attempts=tuple(group.attempts[place] for place in range(group.size)),
        lost=tuple(sorted(group.lost)),
        outages=group.outages,
    )
