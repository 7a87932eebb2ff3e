"""The only module that touches `desktop_env`: OSWorld's provider classes, made to obey.

What is used of them is what they know: which `vmrun` commands bring a machine up, in which order, with which product
flag; how OSWorld's container is made (environment, capabilities, KVM, the disk's place, the four ports).

What is replaced, because it would hurt an env-server:

- `VMwareProvider` starts `vmrun` and does not wait for it, takes an error message for an IP address, and loops for ever
  when a machine does not start. Its code runs here in a private copy of its module whose commands and pauses are an
  `Attempt`'s: commands are waited for, errors are raised, pauses are short and everything ends with the attempt.
- `DockerProvider` picks ports that another process may take meanwhile, and publishes a guest that asks for no password
  on every interface; it lists all sockets of the host (which macOS refuses), holds a lock that every start of the host
  shares, pulls gigabytes without asking when the image is absent, leaves a container behind when its ports are taken,
  and polls for five minutes in a thread that nothing can end. Overridden: ports are Docker's choice (or ours) on the
  loopback interface, the image must be there, what failed is removed; waiting and stopping are not its business.
- The managers are not used. They keep their registry in whatever directory the process runs in, download 20 GB images
  in a loop without end, delete folders that are not in their registry, and raise at import on some machines. Which
  machine is whose is the providers' own business here; images are installed by a person.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shlex
import subprocess
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from arpo.protocol.problems import ConfigError
from arpo.providers.osworld.attempt import Attempt

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

log = logging.getLogger(__name__)

_VMWARE = "desktop_env.providers.vmware.provider"
_DOCKER = "desktop_env.providers.docker.provider"
_INSTALL = "pip install --no-deps desktop-env==1.0.2"

GUEST_PORTS = (5000, 9222, 8006, 8080)
"""Inside OSWorld's guests: its server, Chromium's DevTools, noVNC, VLC."""


def vmware(attempt: Attempt, vmrun: str) -> Any:
    """OSWorld's VMwareProvider whose every command and pause is the attempt's."""
    module = _private_copy(_VMWARE)

    def execute(command: Sequence[str], return_output: bool = False) -> str | None:
        said = attempt.command([vmrun, *command[1:]])
        return said if return_output else None

    def check_output(line: str, **_: object) -> bytes:
        return attempt.command([vmrun, *shlex.split(line)[1:]]).encode()

    settings: dict[str, Any] = {
        "subprocess": types.SimpleNamespace(
            check_output=check_output,
            STDOUT=subprocess.STDOUT,
            CalledProcessError=subprocess.CalledProcessError,
        ),
        "time": types.SimpleNamespace(sleep=attempt.sleep),
        "print": lambda *_: None,
        "logger": types.SimpleNamespace(info=log.debug, error=log.debug),  # what fails in the end is raised
    }
    vars(module).update(settings)
    module.VMwareProvider._execute_command = staticmethod(execute)
    return module.VMwareProvider(None)


@cache
def vmrun_product() -> tuple[str, ...]:
    """`vmrun`'s flag for this system's VMware: Fusion on macOS, Workstation elsewhere."""
    return tuple(_private_copy(_VMWARE).get_vmrun_type(return_list=True))


def check_vmware() -> None:
    """Raises ConfigError when OSWorld's VMware classes are not installed."""
    _private_copy(_VMWARE)


def check_docker() -> None:
    """Raises ConfigError when OSWorld's Docker classes, or what they import, are not installed."""
    _docker_module()


def start_container(
    client: DockerClient,
    *,
    disk: str,
    image: str,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
    ports: Sequence[int | None],
    lock_file: str,
) -> Container:
    """Create and start OSWorld's container; returns it at once, long before its guest serves.

    ports: on this host's loopback, for `GUEST_PORTS`; None lets Docker choose. lock_file: a path of this call's own.
    Raises docker.errors.DockerException and requests' exceptions; then there is no container.
    """
    on_host = dict(zip(GUEST_PORTS, ports, strict=True))

    class Bounded(_docker_module().DockerProvider):  # type: ignore[misc]
        def __init__(self) -> None:
            self.client = types.SimpleNamespace(containers=types.SimpleNamespace(run=run))
            self.environment = dict(environment)
            self.lock_file = lock_file
            self.container = None

        def _get_available_port(self, start_port: int) -> tuple[str, int] | tuple[str]:
            port = on_host[start_port]
            return ("127.0.0.1",) if port is None else ("127.0.0.1", port)

        def _wait_for_vm_ready(self, timeout: int = 300) -> None:
            """The caller waits, where it can be ended."""

    def run(_: str, *, detach: bool, **how: Any) -> Container:
        container = client.containers.create(image, detach=detach, labels=dict(labels), **how)
        try:
            container.start()
        except BaseException:
            container.remove(force=True)
            raise
        return container

    provider = Bounded()
    provider.start_emulator(disk, headless=True, os_type="Ubuntu")
    container: Container = provider.container
    return container


@cache
def _docker_module() -> types.ModuleType:
    try:
        return importlib.import_module(_DOCKER)
    except ModuleNotFoundError as error:
        fix = _INSTALL if str(error.name).startswith("desktop_env") else "pip install 'arpo[docker]'"
        raise ConfigError(f"docker provider: Python package {error.name} not found; fix: {fix}") from None


def _private_copy(name: str) -> Any:
    """A module of our own with another's code: what is replaced in it is replaced for nobody else."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        raise ConfigError(f"vmware provider: Python package desktop-env not found; fix: {_INSTALL}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
