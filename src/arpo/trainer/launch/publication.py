"""One version of the weights, and how an engine actor gets it.

Invariant: `give` returns when the actor samples with the publication, and raises when it does not; it never waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from arpo.rollout.engines.base import EngineError, EngineUnusableError
from arpo.rollout.engines.vllm.weights import MisfitError
from arpo.telemetry import tracing
from arpo.trainer.launch.cluster import first_line
from arpo.trainer.launch.ray_ranks import RayLearner


class Publication(Protocol):
    """Weights somewhere in the cluster."""

    async def give(self, number: int, actor: Any) -> None:
        """Make an actor, the engine of that number, sample with them.

        Raises RayActorError or EngineUnusableError when the actor is gone or of no use; EngineError when it has refused
        them; LearnerLost when they are gone with a rank.
        """


class Stored:
    """Weights (`Packed`) in the object store. timeout_s: for one actor."""

    def __init__(self, packed: ray.ObjectRef[Any], version: int, timeout_s: float | None = None) -> None:
        self._packed = packed
        self._version = version
        self._timeout_s = timeout_s

    async def give(self, number: int, actor: Any) -> None:
        """See `Publication.give`."""
        push = actor.push.remote(self._packed, self._version, tracing.traceparent())
        await answer_within(push, self._timeout_s, "taken new weights")


class Direct:
    """Weights that ranks hold and send by vLLM's native transfer; one object for the life of the learner's ranks.

    An engine to which the transfer failed gets its weights through the object store from then on; the actor that replaces
    it is met anew. say: told so, in one line. colocated: each engine's weights come from the rank on its GPU, which has
    them for one attempt; whoever comes later gets them from rank 0, through the store unless it is rank 0's own engine.
    """

    def __init__(
        self,
        learner: RayLearner,
        timeout_s: float,
        say: Callable[[str], None],
        *,
        colocated: bool = False,
    ) -> None:
        self._learner = learner
        self._colocated = colocated
        self._timeout_s = timeout_s
        self._say = say
        self._serial = 0
        self._from_store: dict[int, Any] = {}

    async def hold(self, version: int) -> DirectPublication:
        """Let those that send hold the learner's weights of the moment."""
        self._serial += 1
        await asyncio.to_thread(self._learner.hold, self._serial)
        return DirectPublication(self, self._serial, version)

    async def give(self, number: int, actor: Any, serial: int, version: int, *, late: bool) -> None:
        """See `Publication.give`. late: not the first attempt to give this engine this publication while it is made."""
        gone = late and self._colocated and number > 0
        if not gone and self._from_store.get(number) != actor:
            try:
                await self._learner.send(number, actor, serial, version)
            except MisfitError:
                raise
            except EngineError as error:
                self._from_store[number] = actor
                self._say(
                    f"engine {number} gets its weights through the object store from now on, as vLLM's own transfer "
                    f"failed ({first_line(error)})"
                )
            else:
                return
        await Stored(self._learner.packed(serial), version, self._timeout_s).give(number, actor)

    async def keep(self, serial: int) -> None:
        """Keep a publication for engines that come late."""
        await asyncio.to_thread(self._learner.keep, serial)

    async def drop(self, serial: int) -> None:
        """Forget one that has failed."""
        await asyncio.to_thread(self._learner.drop, serial)


class DirectPublication:
    """What `Direct.hold` held."""

    def __init__(self, direct: Direct, serial: int, version: int) -> None:
        self._direct = direct
        self._serial = serial
        self._version = version
        self._tried: set[int] = set()
        self._made = False

    async def give(self, number: int, actor: Any) -> None:
        """See `Publication.give`."""
        late = self._made or number in self._tried
        self._tried.add(number)
        await self._direct.give(number, actor, self._serial, self._version, late=late)

    async def keep(self) -> None:
        """All engines have it: keep it for those that come late."""
        self._made = True
        await self._direct.keep(self._serial)

    async def drop(self) -> None:
        """It was refused."""
        await self._direct.drop(self._serial)


async def answer_within(reference: Any, timeout_s: float | None, what: str) -> Any:
    """As `answer`. Raises EngineUnusableError when the actor has not done in time what it was asked for."""
    try:
        return await asyncio.wait_for(answer(reference), timeout_s)
    except TimeoutError as error:
        raise EngineUnusableError(f"the engine has not {what} within {timeout_s:g} s") from error


async def answer(reference: Any) -> Any:
    """What an actor answers; raises what it raised. Cancelled, the actor is told so."""
    try:
        return await reference
    except asyncio.CancelledError:
        ray.cancel(reference)
        raise
    except RayActorError:
        raise
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise EngineError(first_line(error)) from error
