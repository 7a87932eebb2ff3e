"""The Ray cluster of a run, and the room that the run has in it.

Invariant: a run has room for all of its actors or for none, so two runs never wait for each other; and the room is given
back, and a cluster of the run's own is gone, when the context ends or the process does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from arpo.config.model import Config
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.trainer.launch.authentication import cluster_address
from arpo.trainer.progress import Reporter

_SAY_EVERY_S = 30.0
_ANSWER_S = 10.0


class Cluster:
    """Async context manager, in which `rank` and `engine` start actors in the run's bundles (`bundles_of`).

    Raises ConfigError when the cluster does not answer, ArpoError when it has no room within `launcher.start_timeout_s`.
    """

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self._section = config.launcher
        self._reporter = reporter
        self._bundles = bundles_of(config)
        self._shared = self._section.engines if config.colocated else 0
        self._first_engine = 0 if config.colocated else config.learner_ranks
        self._group: PlacementGroup | None = None

    async def __aenter__(self) -> Self:
        if not self._connect():
            await asyncio.Event().wait()  # until the stop that was asked for has come round
        try:
            self._group = placement_group(self._bundles, strategy="PACK")
            await self._room(self._group)
        except BaseException:
            ray.shutdown()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._group is not None  # noqa: S101 - made on entering
        if ray.is_initialized():
            remove_placement_group(self._group)
            ray.shutdown()

    def rank(self, number: int, cls: Any, *arguments: Any) -> Any:
        """Start the actor of a learner rank, of a class that `ray.remote` made; returns its handle at once."""
        return self._actor(number, cls, arguments)

    def engine(self, number: int, cls: Any, *arguments: Any) -> Any:
        """Start an engine's actor; see `rank`."""
        return self._actor(self._first_engine + number, cls, arguments)

    def _actor(self, bundle: int, cls: Any, arguments: Sequence[Any]) -> Any:
        assert self._group is not None  # noqa: S101 - made on entering
        resources = self._bundles[bundle]
        actors = 2 if bundle < self._shared else 1
        place = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=bundle
        )
        return cls.options(
            num_cpus=resources["CPU"] / actors,
            num_gpus=resources.get("GPU", 0) / actors,
            scheduling_strategy=place,
        ).remote(*arguments)

    def _connect(self) -> bool:
        """Blocks, in the main thread: a cluster of the run's own ends with the thread that has started it.

        Returns whether there is a cluster; there is none when SIGTERM came meanwhile.
        """
        address = cluster_address(self._section)
        if address is not None:
            _raise_if_silent(address)
        wanted = sum(bundle["CPU"] for bundle in self._bundles)
        # cores of this machine are shared by its ranks, engines and desktops; Ray's counting must not refuse that
        cores = max(os.cpu_count() or 1, int(wanted) + 1)
        answered = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address or "local",
                num_cpus=None if address else cores,
                include_dashboard=None if address else False,
                logging_level=logging.WARNING,
            )
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise ArpoError(f"a Ray cluster of the run's own could not be started: {error}") from error
            raise _unanswered(address, error) from error
        except SystemExit:  # how Ray answers SIGTERM
            ray.shutdown()
            signal.signal(signal.SIGTERM, answered)
            signal.raise_signal(signal.SIGTERM)
            return False
        finally:
            signal.signal(signal.SIGTERM, answered)  # the run has an answer of its own
        self._reporter.say(f"Ray cluster {address or 'of its own'}")
        return True

    async def _room(self, group: PlacementGroup) -> None:
        started = said = time.monotonic()
        while not group.wait(timeout_seconds=0):
            now = time.monotonic()
            if now - started > self._section.start_timeout_s:
                remove_placement_group(group)
                raise ArpoError(
                    f"{self._lacking()} after {now - started:.0f} s; fix: a larger cluster, fewer learner.ranks or "
                    "launcher.engines, a smaller launcher.cpus, or a longer launcher.start_timeout_s"
                )
            if now - said > _SAY_EVERY_S:
                self._reporter.say(f"waiting: {self._lacking()}")
                said = now
            await asyncio.sleep(0.1)

    def _lacking(self) -> str:
        wanted, free, total = (
            ", ".join(f"{resources.get(name, 0):g} {name}" for name in self._bundles[0])
            for resources in (
                {name: sum(bundle[name] for bundle in self._bundles) for name in self._bundles[0]},
                ray.available_resources(),  # type: ignore[no-untyped-call]
                ray.cluster_resources(),  # type: ignore[no-untyped-call]
            )
        )
        return f"the Ray cluster has no room for the run's {wanted} (free: {free} of {total})"


def bundles_of(config: Config) -> list[dict[str, float]]:
    """What a run needs of the cluster: a bundle for each learner rank, then one for each engine.

    Colocated engines have none of their own: the first ranks' bundles have CPUs for two actors, which share the GPU.
    """
    launcher = config.launcher
    shared, apart = (launcher.engines, 0) if config.colocated else (0, launcher.engines)
    actors = [2 if rank < shared else 1 for rank in range(config.learner_ranks)] + [1] * apart
    gpus = [1] * config.learner_ranks + [config.engine_gpus] * apart
    return [
        {"CPU": launcher.cpus * number} | ({"GPU": float(share)} if config.hardware.gpus else {})
        for number, share in zip(actors, gpus, strict=True)
    ]


def _raise_if_silent(address: str) -> None:
    """Ray itself waits many minutes for an address where nobody listens."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # `auto`, say
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise _unanswered(address, error) from error


def _unanswered(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {address}: {first_line(error)}; fix: launcher.address or RAY_ADDRESS, and "
        "RAY_AUTH_MODE and the token where the cluster wants one"
    )


def first_line(error: BaseException) -> str:
    """What an error says first, or what it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
