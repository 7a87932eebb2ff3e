"""Virtual machines in containers: OSWorld's Docker image, by OSWorld's DockerProvider and the Docker SDK.

Invariants
- A desktop is a container of its own; a reset is a new one, so a desktop is clean by construction.
- A container that was created is removed, also when its start was cancelled half-way; those of a killed env-server are
  removed when the next one on this host starts.
- Guests ask for no password: their ports are published on the loopback interface only.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import platform
import secrets
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Addresses, Guest, ProviderError
from arpo.providers.osworld import upstream
from arpo.providers.osworld.running import Rest, Running, reached

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

log = logging.getLogger(__name__)

T = TypeVar("T")

IMAGE = "happysixd/osworld-docker@sha256:0e6497a9295647cf05bf2b2af522fdd79bdeba2737595259cab310a3bcf6baa9"
"""OSWorld's image, as it was when this was written."""

_DISK = "https://huggingface.co/datasets/xlangai/ubuntu_osworld/resolve/main/Ubuntu.qcow2.zip"
_OWNER = "io.arpo.env-server"  # label: host and process id
_KVM = Path("/dev/kvm")
_CALL_S = 60.0
_THREADS = 32
_SHARE = 0.9  # of the time for a start: the rest is for saying what was late
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SLOW = "look at `docker logs {name}`; a first boot without KVM takes minutes: raise --start-timeout-s"

# What Docker says → what to do.
_FIXES = (
    (
        "port is already allocated",
        "another --provider-option port_base=N, or none: then Docker takes free ports",
    ),
    (
        "address already in use",
        "another --provider-option port_base=N, or none: then Docker takes free ports",
    ),
    ("/dev/kvm", "load KVM (modprobe kvm_intel or kvm_amd) and let Docker use /dev/kvm"),
    ("no space left", "free disk space: docker system prune"),
    ("mounts denied", "share the disk's folder with Docker Desktop (Settings, Resources, File sharing)"),
    ("no such image", "docker pull {image}"),
)


class DockerProvider:
    """Implements `Provider` over OSWorld's Docker image.

    screen: width and height of the guests' screen in pixels; OSWorld's disk has 1920x1080.
    start_timeout_s: how long a start may take; a cold boot takes minutes without KVM.
    vm_path: the guest's disk (Ubuntu.qcow2), shared by all, never written. image: OSWorld's image or one like it.
    ram, disk: as QEMU writes sizes. cores: CPUs a guest.
    port_base: desktop n gets the host ports port_base+4n to +4n+3 (server, DevTools, noVNC, VLC); None: free ones.
    pause_after_s: pause a guest that is asked nothing for this many seconds; None: never.
    """

    name = "docker"

    def __init__(
        self,
        *,
        screen: tuple[int, int] = (1920, 1080),
        start_timeout_s: float = 120.0,
        vm_path: str | None = None,
        image: str = IMAGE,
        ram: str = "4G",
        cores: int = 4,
        disk: str = "32G",
        port_base: int | None = None,
        pause_after_s: float | None = None,
    ) -> None:
        self._screen = screen
        self._boot_s = start_timeout_s * _SHARE
        self._vm_path = Path(vm_path).expanduser().resolve() if vm_path is not None else None
        self._image = image
        self._environment = {"DISK_SIZE": disk, "RAM_SIZE": ram, "CPU_CORES": str(cores)}
        self._port_base = port_base
        self._pause_after_s = pause_after_s
        self._client: DockerClient | None = None
        self._places: set[int] = set()
        self._leased: dict[str, tuple[Container, int, Running]] = {}
        self._discarding: set[asyncio.Task[None]] = set()
        # Of our own: a daemon that hangs must not keep others' work waiting.
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="docker")
        self._folder = tempfile.TemporaryDirectory(prefix="arpo-docker-")

    async def preflight(self) -> None:
        """Raises ConfigError that names what is missing and the fix."""
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def start(self) -> Guest:
        """Start a container and wait until its guest serves. Raises ProviderError."""
        place = next(number for number in itertools.count() if number not in self._places)
        self._places.add(place)
        try:
            return await self._bring_up(place)
        except BaseException:
            self._places.discard(place)
            raise

    async def reset(self, guest: Guest) -> Guest:
        """A new container in place of a used one. Raises ProviderError; the used one is gone either way."""
        await self.stop(guest)
        return await self.start()

    async def expose(self, guest: Guest) -> Guest:
        """The guest with its addresses on this host's loopback."""
        return await self._lease(guest)[2].exposed()

    async def pause(self, guest: Guest) -> None:
        """Freeze the container. Raises ProviderError."""
        await self._lease(guest)[2].rest.pause_guest()

    async def resume(self, guest: Guest) -> None:
        """Undo `pause`. Raises ProviderError."""
        await self._lease(guest)[2].rest.resume_guest()

    async def stop(self, guest: Guest) -> None:
        """Remove the container."""
        if guest.id in self._leased:
            container, place, running = self._leased.pop(guest.id)
            await running.forget()
            await self._discarded(self._discard(container))
            self._places.discard(place)

    async def close(self) -> None:
        """Remove every container, those of cancelled starts included."""
        await asyncio.gather(*(self.stop(running.guest) for _, _, running in list(self._leased.values())))
        if self._discarding:
            await asyncio.wait(self._discarding)
        if self._client is not None:
            self._client.close()
            self._client = None
        self._threads.shutdown(wait=False)
        self._folder.cleanup()

    async def _check(self) -> None:
        upstream.check_docker()
        if self._vm_path is None or not self._vm_path.is_file():
            given = f"{self._vm_path} is no file" if self._vm_path else "no disk given"
            raise ConfigError(
                f"docker provider: {given}; fix: unpack {_DISK} and --provider-option vm_path=/path/to/Ubuntu.qcow2"
            )
        host = urlsplit(os.environ.get("DOCKER_HOST", ""))
        if host.scheme == "ssh" or (host.scheme == "tcp" and host.hostname not in _LOOPBACK):
            raise ConfigError(
                f"docker provider: DOCKER_HOST is {host.geturl()}, whose guests cannot be reached from here; "
                "fix: run arpo-env-server on that machine"
            )
        _warn_without_kvm()
        try:
            client = await self._docker()
            await self._call(lambda: client.images.get(self._image))
            await self._call(lambda: self._remove_abandoned(client))
        except ProviderError as error:
            raise ConfigError(f"docker provider: {error}") from error

    async def _docker(self) -> DockerClient:
        if self._client is None:
            docker = importlib.import_module("docker")
            client: DockerClient = await self._call(lambda: docker.from_env(timeout=_CALL_S))
            await self._call(client.ping)
            self._client = client
        return self._client

    async def _bring_up(self, place: int) -> Guest:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        container = await self._created(place)
        try:
            await self._call(container.reload)
            addresses = _addresses(container)
            rest = Rest(
                lambda: self._call(container.pause),
                lambda: self._call(container.unpause),
                self._pause_after_s,
            )
            running = await reached(
                str(container.name),
                addresses,
                rest,
                self._screen,
                timeout_s=max(self._boot_s - (loop.time() - begun), 1.0),
                fix=_SLOW.format(name=container.name),
                alive=lambda: self._check_running(container),
            )
        except BaseException:
            await self._discarded(self._discard(container))
            raise
        self._leased[running.guest.id] = container, place, running
        return running.guest

    async def _created(self, place: int) -> Container:
        """A started container. Cancelled half-way, it is removed once it is known."""
        client = await self._docker()
        base = self._port_base
        ports = [None if base is None else base + 4 * place + n for n in range(4)]

        def create() -> Container:
            return upstream.start_container(
                client,
                disk=str(self._vm_path),
                image=self._image,
                environment=self._environment,
                labels={_OWNER: f"{platform.node()}/{os.getpid()}"},
                ports=ports,
                lock_file=str(Path(self._folder.name) / secrets.token_hex(8)),
            )

        creating = asyncio.ensure_future(self._call(create))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            self._in_background(self._discard_created(creating))
            raise

    async def _discarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for it; cancelled, it goes on by itself and `close` waits for it."""
        await asyncio.shield(self._in_background(work))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)
        return task

    async def _discard_created(self, creating: asyncio.Future[Container]) -> None:
        try:
            container = await creating
        except ProviderError:
            return  # then there is none
        await self._discard(container)

    async def _discard(self, container: Container) -> None:
        """Never raises: it may be gone already. Not OSWorld's stop, which gives QEMU ten seconds for an end in order."""
        try:
            await self._call(lambda: container.remove(force=True, v=True))
        except ProviderError as error:
            if "No such container" not in str(error):
                log.warning("container %s could not be removed: %s", container.name, error)

    async def _check_running(self, container: Container) -> None:
        await self._call(container.reload)
        if container.status not in ("running", "paused"):
            said = (await self._call(lambda: container.logs(tail=5))).decode("utf-8", "replace").split("\n")
            last = " | ".join(line.strip() for line in said if line.strip()) or "it said nothing"
            raise ProviderError(f"the container has ended ({container.status}): {last}")

    def _remove_abandoned(self, client: DockerClient) -> None:
        psutil = importlib.import_module("psutil")
        for container in client.containers.list(all=True, filters={"label": _OWNER}):
            host, _, pid = container.labels[_OWNER].rpartition("/")
            if host == platform.node() and not psutil.pid_exists(int(pid)):
                log.warning("removing container %s, which a killed env-server left behind", container.name)
                container.remove(force=True, v=True)

    async def _call(self, call: Callable[[], T]) -> T:
        """A call of the SDK, in a thread that its own time-out ends. Raises ProviderError with the fix."""
        errors = importlib.import_module("docker.errors")
        requests = importlib.import_module("requests.exceptions")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except errors.APIError as error:
            raise self._explained(str(error.explanation or error)) from error
        except (errors.DockerException, requests.RequestException) as error:
            raise ProviderError(
                f"the Docker daemon does not answer at {os.environ.get('DOCKER_HOST') or 'its usual socket'}: "
                f"{_innermost(error)}; {_daemon_fix(str(error))}"
            ) from error

    def _explained(self, said: str) -> ProviderError:
        for words, fix in _FIXES:
            if words in said.lower():
                return ProviderError(f"Docker says: {said.strip()}; fix: {fix.format(image=self._image)}")
        return ProviderError(f"Docker says: {said.strip()}")

    def _lease(self, guest: Guest) -> tuple[Container, int, Running]:
        if guest.id not in self._leased:
            raise ProviderError(f"there is no guest {guest.id}")
        return self._leased[guest.id]


def _addresses(container: Container) -> Addresses:
    published: dict[str, Any] = container.attrs["NetworkSettings"]["Ports"] or {}
    at = {inside: f"127.0.0.1:{on_host[0]['HostPort']}" for inside, on_host in published.items() if on_host}
    server, chromium, vnc, vlc = (at.get(f"{port}/tcp") for port in upstream.GUEST_PORTS)
    if server is None:
        raise ProviderError(f"container {container.name} has ended before its ports were published")
    return Addresses(server=server, chromium=chromium, vnc=vnc, vlc=vlc)


def _warn_without_kvm() -> None:
    if not _KVM.exists():
        log.warning(
            "docker provider: there is no /dev/kvm, guests are emulated: minutes to boot, slow to use"
        )


def _innermost(error: BaseException) -> str:
    """The system's reason, without the libraries around it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError | TimeoutError):
        seen = seen.__cause__ or seen.__context__
    while seen is not None and (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return str(getattr(seen, "strerror", None) or error).splitlines()[0]


def _daemon_fix(said: str) -> str:
    if "ermission denied" in said:
        return "fix: add this user to the group docker, or run as root"
    return "fix: start Docker (Docker Desktop, or systemctl start docker), or set DOCKER_HOST"
