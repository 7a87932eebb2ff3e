"""One engine made of engine actors: requests are spread over them, and an actor that dies is replaced.

Invariant: a request is answered or fails for a reason of its own, whichever actors, or processes below them, die
meanwhile; and no actor samples with weights older than those of the last `push` that has returned. From `sleep` to the
next `publish` no actor uses a GPU, nor is one started.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from arpo.protocol.problems import ArpoError
from arpo.rollout.engines.base import EngineError, EngineUnusableError, Generation, Sampling
from arpo.telemetry import tracing
from arpo.trainer.launch.base import Plan
from arpo.trainer.launch.cluster import Cluster, first_line
from arpo.trainer.launch.engine_actor import EngineActor
from arpo.trainer.launch.packed import pack
from arpo.trainer.launch.pictures import Lacking
from arpo.trainer.launch.publication import Publication, Stored, answer, answer_within

if TYPE_CHECKING:
    import torch

_SENDS = 4
"""How often a request is sent to actors that die of it or beside it."""


class _Place:
    """One actor, and the one after it. `ready` is set while the actor may be asked."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.actor: Any = None
        self.ready = asyncio.Event()
        self.asleep = False
        self.given: Publication | None = None
        self.outstanding = 0
        self.sent: set[str] = set()
        """Pictures that the actor should have; it may have dropped some."""
        self.failures = 0
        """Actors in a row that died before they answered anything."""
        self.coming: asyncio.Task[None] | None = None
        """Brings the actor up; done when it is ready or broken."""
        self.broken: EngineError | ArpoError | None = None
        """Why nobody tries any more."""


class RayEngine:
    """An `Engine` on the cluster's last bundles. An async context manager: its actors come up while it is being used.

    say: told in one line when an actor is lost. When no actor is left, requests raise EngineError, or ConfigError and
    CheckpointError if that is why none could be started, and a push raises ArpoError.
    """

    def __init__(self, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._plan = plan
        self._say = say
        self._version = plan.policy_version
        self._newest: Publication | None = None
        self._places = [_Place(number) for number in range(plan.config.launcher.engines)]
        self._actor = ray.remote(EngineActor)
        self._closed = False
        self._turn = asyncio.Event()
        """It is the engines' turn to use GPUs that they share."""
        self._turn.set()
        self._timeout_s = plan.config.engine.vllm.push_timeout_s
        self.restarts = 0

    async def __aenter__(self) -> Self:
        for place in self._places:
            place.coming = asyncio.create_task(self._bring(place, None))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def policy_version(self) -> int:
        """The version of the weights that were pushed last."""
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], images: Sequence[bytes], sampling: Sampling
    ) -> Generation:
        """See `Engine.generate`. Sampling has no side effects, so a request whose actor died is simply sent again."""
        names = [hashlib.sha256(image).hexdigest() for image in images]
        pictures = dict(zip(names, images, strict=True))
        for _ in range(_SENDS):
            place = await self._choose(names)
            actor = place.actor
            place.outstanding += 1
            try:
                generation = await self._ask(place, prompt_ids, names, pictures, sampling)
            except (RayActorError, EngineUnusableError) as error:
                self._replace(place, actor, error)
            else:
                place.failures = 0
                return generation
            finally:
                place.outstanding -= 1
        raise EngineError(f"{_SENDS} engines ended while they worked on the same request")

    async def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """See `Engine.push`: weights that are in this process."""
        await self.publish(Stored(ray.put(pack(weights)), version), version)

    async def publish(self, publication: Publication, version: int) -> None:
        """As `push`: weights that are somewhere in the cluster, and go to the actors from there."""
        before = self._newest, self._version
        self._newest, self._version = publication, version
        self._turn.set()
        try:
            # an actor that is being replaced takes the newest weights before it is asked anything
            await asyncio.gather(*(self._push(place) for place in self._places))
        except EngineError:
            self._newest, self._version = before
            raise
        reasons = [place.broken for place in self._places if place.broken is not None]
        if len(reasons) == len(self._places):
            known = next((reason for reason in reasons if isinstance(reason, ArpoError)), None)
            raise known or ArpoError(f"no engine is left: {reasons[0]}")

    async def sleep(self) -> None:
        """Give the GPUs' memory away; for colocated engines. Requests wait until the next `publish`. Sleeping twice is
        harmless.

        An actor that is coming up comes up first; one that dies meanwhile is replaced at the next `publish`.
        """
        if not self._turn.is_set():
            return
        while coming := [p.coming for p in self._places if p.coming is not None and not p.coming.done()]:
            await asyncio.wait(coming)
        self._turn.clear()
        await asyncio.gather(*(self._lull(place) for place in self._places if place.ready.is_set()))

    async def close(self) -> None:
        """End all actors at once."""
        self._closed = True
        for place in self._places:
            if place.coming is not None:
                place.coming.cancel()
            if place.actor is not None:
                ray.kill(place.actor)

    async def _ask(
        self,
        place: _Place,
        prompt_ids: Sequence[int],
        names: Sequence[str],
        pictures: Mapping[str, bytes],
        sampling: Sampling,
    ) -> Generation:
        sent = {name: data for name, data in pictures.items() if name not in place.sent}
        while True:
            place.sent.update(sent)
            reply = await answer(
                place.actor.generate.remote(
                    list(prompt_ids), list(names), sent, sampling, tracing.traceparent()
                )
            )
            if not isinstance(reply, Lacking):
                generation: Generation = reply
                return generation
            sent |= {name: pictures[name] for name in reply.names}

    async def _choose(self, names: Sequence[str]) -> _Place:
        """The actor with the least to do; of those the one that has most of the pictures. Waits while there is none."""
        while True:
            there = [place for place in self._places if place.ready.is_set()]
            if there:
                return min(there, key=lambda p: (p.outstanding, -sum(name in p.sent for name in names)))
            if self._closed:
                raise EngineError("the engine is closed")
            coming = [place.coming for place in self._places if place.coming and place.broken is None]
            if not coming:
                raise self._places[0].broken or EngineError("no engine was started")
            await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)

    async def _start(self, place: _Place) -> None:
        """An actor with the newest weights, in a place."""
        await self._turn.wait()
        place.sent, place.asleep = set(), False
        place.actor = self._cluster.engine(place.number, self._actor, str(Path.cwd()))
        await place.actor.start.remote(self._plan)
        place.given = None
        while place.given is not (newest := self._newest) and newest is not None:
            await newest.give(place.number, place.actor)
            place.given = newest
        place.ready.set()

    async def _lull(self, place: _Place) -> None:
        actor = place.actor
        try:
            await answer_within(actor.sleep.remote(), self._timeout_s, "fallen asleep")
        except (RayActorError, EngineUnusableError) as error:
            self._replace(place, actor, error)
        else:
            place.asleep = True

    async def _push(self, place: _Place) -> None:
        actor = place.actor
        newest = self._newest
        if place.ready.is_set() and newest is not None and place.given is not newest:
            try:
                if place.asleep:
                    await answer_within(actor.wake.remote(), self._timeout_s, "woken up")
                    place.asleep = False
                await newest.give(place.number, actor)
                place.given = newest
            except (RayActorError, EngineUnusableError) as error:
                self._replace(place, actor, error)
        if not place.ready.is_set() and place.coming is not None:
            await asyncio.wait([place.coming])

    def _replace(self, place: _Place, actor: Any, why: RayError | EngineUnusableError) -> None:
        """Begin to replace the actor, unless another request has seen its end before."""
        if place.actor is actor and place.ready.is_set():
            place.ready.clear()
            place.coming = asyncio.create_task(self._bring(place, why))

    async def _bring(self, place: _Place, ended: RayError | EngineUnusableError | None) -> None:
        """Start actors until one has the weights, or too many in a row have died. ended: why the one before did."""
        while ended is None or place.failures < self._plan.config.launcher.max_restarts:
            if ended is not None:
                self._say(f"engine {place.number} ended ({first_line(ended)}); starting it again")
                place.failures += 1
                self.restarts += 1
                ray.kill(place.actor)  # one that only cannot be reached would keep the room of the next
            try:
                await self._start(place)
            except RayTaskError as error:
                # it would say so again; an engine that became unusable while it started may not
                if isinstance(error.cause, ArpoError) and not isinstance(error.cause, EngineUnusableError):
                    place.broken = error.cause
                    return
                ended = error
            except (RayError, EngineUnusableError) as error:
                ended = error
            except (EngineError, ArpoError) as error:
                place.broken = error
                return
            else:
                return
        place.broken = EngineError(
            f"engine {place.number} ended {place.failures + 1} times in a row: {first_line(ended)}"
        )
        self._say(str(place.broken))
