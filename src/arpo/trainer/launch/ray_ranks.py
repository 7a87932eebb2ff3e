"""The learner's ranks as Ray actors, driven from a process that has no model.

Invariant: every call goes to all ranks with the same arguments, and the next begins when all have answered; once a rank is
lost, or the ranks no longer agree, every call raises LearnerLost.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from arpo.files import write_atomic
from arpo.protocol.problems import ConfigError
from arpo.telemetry import tracing
from arpo.trainer.launch.base import LearnerLost, Plan
from arpo.trainer.launch.cluster import Cluster, first_line
from arpo.trainer.launch.outgoing import senders
from arpo.trainer.launch.rank_actor import SEND, WATCH, RankActor
from arpo.trajectory import GroupMember, Trajectory
from arpo.trajectory.store import ImageSource

_BLAME_S = 30.0
"""For so long after one rank has failed the others may say the same, or that one of them is gone."""


class RayLearner:
    """A `RunLearner` whose ranks are actors in the cluster's first bundles; made when all of them have met.

    run: the run directory. Raises ConfigError when a rank does not see it or cannot load the policy, LearnerLost when one
    cannot be started.
    """

    def __init__(self, cluster: Cluster, plan: Plan, run: Path) -> None:
        size = plan.config.learner_ranks
        remote: Any = ray.remote  # its overloads know no concurrency groups
        actor = remote(concurrency_groups={WATCH: 1, SEND: 1})(RankActor)
        self._lost: str | None = None
        self._senders = senders(plan.config)
        self._actors = [cluster.rank(number, actor, str(Path.cwd())) for number in range(size)]
        try:
            self._find(run)
            (address,) = self._gather([self._actors[0].meet.remote()])
            self._gather([a.join.remote(plan, rank, size, address) for rank, a in enumerate(self._actors)])
        except BaseException:
            self.close()
            raise

    def step(
        self, groups: Sequence[Sequence[GroupMember]], images: ImageSource, version: int | None = None
    ) -> dict[str, float]:
        """See `Learner.step`."""
        metrics: dict[str, float] = self._call("step", groups, images, version)
        return metrics

    def imitate_step(
        self, demonstrations: Sequence[Trajectory], images: ImageSource, lr: float
    ) -> dict[str, float]:
        """See `Learner.imitate_step`."""
        metrics: dict[str, float] = self._call("imitate_step", demonstrations, images, lr)
        return metrics

    def token_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[list[float]]:
        """See `Learner.token_logprobs`."""
        logprobs: list[list[float]] = self._call("token_logprobs", trajectories, images)
        return logprobs

    def sequence_logprobs(self, trajectories: Sequence[Trajectory], images: ImageSource) -> list[float]:
        """See `Learner.sequence_logprobs`."""
        logprobs: list[float] = self._call("sequence_logprobs", trajectories, images)
        return logprobs

    def load(self, folder: Path) -> None:
        """See `Learner.load`."""
        self._call("load", folder)

    def begin_save(self, folder: Path) -> Future[None]:
        """See `Learner.begin_save`: every rank writes its part, and the future ends when all have."""
        self._gather([actor.begin_save.remote(folder) for actor in self._actors])
        writing = [actor.saved.remote() for actor in self._actors]
        written: Future[None] = Future()

        def wait() -> None:
            try:
                self._gather(writing)
            except BaseException as error:  # whoever waits for the future decides
                written.set_exception(error)
            else:
                written.set_result(None)

        threading.Thread(target=wait, name="wait-for-save", daemon=True).start()
        return written

    def weights(self) -> ray.ObjectRef[Any]:
        """Where rank 0's gathered weights (`Packed`) are; they do not come here."""
        pairs = [actor.weights.remote() for actor in self._actors]
        self._gather([there for _, there in pairs])
        packed: ray.ObjectRef[Any] = pairs[0][0]
        return packed

    def hold(self, serial: int) -> None:
        """Gather the weights on the ranks that send, as the publication of that number."""
        self._gather([actor.hold.remote(serial) for actor in self._actors])

    def keep(self, serial: int) -> None:
        """See `Outgoing.keep`."""
        self._gather([actor.keep.remote(serial) for actor in self._actors[: self._senders]])

    def drop(self, serial: int) -> None:
        """See `Outgoing.drop`."""
        self._gather([actor.drop.remote(serial) for actor in self._actors[: self._senders]])

    async def send(self, number: int, actor: Any, serial: int, version: int) -> None:
        """See `Outgoing.send`, on the engine's rank. For any thread's event loop, at any time."""
        rank = number if self._senders > 1 else 0
        try:
            await self._actors[rank].send.remote(number, actor, serial, version)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise self._lose(rank, "ended", error) from error

    def packed(self, serial: int) -> ray.ObjectRef[Any]:
        """Where a publication is as `Packed`, once rank 0 has put it there."""
        packed: ray.ObjectRef[Any] = self._actors[0].packed.remote(serial)
        return packed

    def close(self) -> None:
        """End all ranks at once: what is to be kept has been saved."""
        for actor in self._actors:
            ray.kill(actor)

    def _call(self, method: str, *arguments: Any) -> Any:
        """A method on all ranks; returns what rank 0 does. Arguments go to the object store once, for all."""
        stored = [ray.put(argument) for argument in arguments]
        return self._gather(
            [actor.call.remote(tracing.traceparent(), method, *stored) for actor in self._actors]
        )[0]

    def _gather(self, asked: Sequence[Any]) -> list[Any]:
        """Each rank's answer. Raises what all ranks raise alike; LearnerLost when one is gone or fails on its own."""
        if self._lost is not None:
            raise LearnerLost(self._lost)
        waiting = {reference: rank for rank, reference in enumerate(asked)}
        answers: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}
        failed_at = 0.0
        while waiting:
            patience = _BLAME_S - (time.monotonic() - failed_at) if failures else None
            done, _ = ray.wait(list(waiting), timeout=patience if patience is None else max(0.0, patience))
            if not done:
                break
            for reference in done:
                rank = waiting.pop(reference)
                try:
                    answers[rank] = ray.get(reference)
                except RayTaskError as error:
                    failed_at = failed_at or time.monotonic()
                    failures[rank] = error.cause
                except RayError as error:
                    raise self._lose(rank, "ended", error) from error
        if not failures:
            return [answers[rank] for rank in sorted(answers)]
        rank, cause = next(iter(failures.items()))
        if answers or waiting or len({type(failure) for failure in failures.values()}) > 1:
            raise self._lose(rank, "failed", cause) from cause
        raise cause

    def _lose(self, rank: int, how: str, why: BaseException) -> LearnerLost:
        self._lost = f"learner rank {rank} {how}: {first_line(why)}"
        return LearnerLost(self._lost)

    def _find(self, run: Path) -> None:
        """Let every rank answer a file in the run directory, in which screenshots and checkpoints are shared."""
        secret = secrets.token_hex(8)
        marker = run / f".shared-{secret}"
        replies = [run / f".shared-{secret}-{rank}" for rank in range(len(self._actors))]
        try:
            write_atomic(marker, secret.encode())
            self._gather(
                [a.find.remote(marker, reply) for a, reply in zip(self._actors, replies, strict=True)]
            )
            for reply in replies:
                if not reply.exists():
                    raise ConfigError(
                        f"the run directory {run} of a learner rank is another one than the driver's; "
                        "fix: run.dir on storage that all nodes have under the same absolute path"
                    )
        finally:
            for path in (marker, *replies):
                path.unlink(missing_ok=True)
