"""The evaluator process: computes one metric, or asks one of OSWorld's own getters, at a time.

Started by `arpo.desktop.evaluators` as `python -m arpo.desktop.evaluator_worker`. Frames on stdin and stdout are
as in `evaluator_messages`; what evaluators print goes to stderr. Ends when stdin ends.

Every call runs in a thread of its own, which the kernel, where it can, holds to that call's limits (`confinement`):
such a restriction cannot be lifted again, and the next call may belong to another episode.

Being a process of its own keeps pandas and friends out of the env-server, gives a time-out that really stops a
hanging evaluator, and survives one that crashes the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from arpo.desktop import osworld
from arpo.desktop.confinement import Guard, guarded
from arpo.desktop.evaluator_messages import (
    LENGTH,
    MAX_REPLY_VALUES,
    Answer,
    Failure,
    GetterCall,
    GuestView,
    MetricCall,
    Order,
)

_PR_SET_PDEATHSIG = 1

_GIB = 1 << 30
_MAX_MEMORY = 4 * _GIB  # a file of the agent's may unfold into anything
_MAX_FILE = _GIB
_SCALARS: tuple[type[Any], ...] = (str, bytes, int, float)
_MAX_REASON = 500  # characters of an exception that a failure repeats


def main() -> None:
    """Serve calls until stdin ends."""
    _die_with_parent()
    _bound_resources()
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    own = Path.cwd()
    while (order := read_frame(calls)) is not None:
        with _scratch_folder(own):
            reply = confined(order, own)
        write_frame(answers, reply)


def _die_with_parent() -> None:
    """A hanging evaluator does not see its stdin end; on Linux the kernel can be told to kill it with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _bound_resources() -> None:
    """No more memory than `_MAX_MEMORY`, no file larger than `_MAX_FILE`, no core dumps; where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {resource.RLIMIT_DATA: _MAX_MEMORY, resource.RLIMIT_FSIZE: _MAX_FILE, resource.RLIMIT_CORE: 0}
    for kind, limit in wanted.items():
        _, most = resource.getrlimit(kind)
        if most == resource.RLIM_INFINITY or limit < most:
            resource.setrlimit(kind, (limit, limit))


def read_frame(stream: BinaryIO) -> Any:
    """The next object; None at the end."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    return pickle.loads(stream.read(LENGTH.unpack(header)[0]))  # noqa: S301 - from our own parent


def write_frame(stream: BinaryIO, reply: Answer | Failure) -> None:
    """Send a reply."""
    data = pickle.dumps(reply)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


@contextmanager
def _scratch_folder(own: Path) -> Iterator[None]:
    """A working and temporary folder for one call: what metrics leave there is of one episode."""
    scratch = tempfile.mkdtemp(dir=own)
    tempfile.tempdir = scratch
    os.chdir(scratch)
    try:
        yield
    finally:
        os.chdir(own)
        shutil.rmtree(scratch, ignore_errors=True)


def confined(order: Order, own: Path) -> Answer | Failure:
    """The call's reply, computed in a new thread under the call's limits; a call that overstepped them has failed."""
    call = order.call
    view = call.guest if isinstance(call, GetterCall) else GuestView(call.cache_dir, (0, 0))
    guard = Guard(
        Path(view.cache_dir) if view.cache_dir else None,
        own,
        guest=frozenset(
            _connected_to(address for address in (view.server, view.chromium, view.vlc) if address)
        ),
        allow=order.allow,
        any_program=order.any_program,
    )
    replies: list[Answer | Failure] = []

    def run() -> None:
        try:
            guard.confine_thread(network=isinstance(call, GetterCall))
        except OSError as error:
            replies.append(Failure(f"its process cannot be confined: {error}"))
            return
        with guarded(guard):
            replies.append(_perform(call, guard))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if guard.refused:  # many metrics catch everything and return 0: that would be a wrong score
        return Failure(f"it may not {guard.refused[0]}", refused=True)
    return replies[0] if replies else Failure("it ended its thread")


def _perform(call: MetricCall | GetterCall, guard: Guard) -> Answer | Failure:
    osworld.absent_packages()
    try:
        if isinstance(call, MetricCall):
            osworld.check_program(call.name)
            metric = osworld.load_metric(call.name)
            guard.check_arguments(call.name, metric, call.arguments, call.options)
            value = metric(*call.arguments, **call.options)
        else:
            value = osworld.load_getter(call.kind)(_Env(call.guest), call.config)
        value = _plain(value)
    except osworld.Unavailable as error:
        return Failure(f"{error}{_to_install(osworld.absent_packages())}")
    except FileNotFoundError as error:
        return Failure(f"FileNotFoundError: {_cut(error)}", missing_file=True)
    except Exception as error:  # evaluators are third-party code: whatever they raise becomes a typed failure
        return Failure(f"{type(error).__name__}: {_cut(error)}{_to_install(osworld.absent_packages())}")
    absent = osworld.absent_packages()
    if absent:  # many metrics catch everything and return 0: that would be a wrong score
        return Failure(f"it needs packages that are not installed{_to_install(absent)}")
    return Answer(value)


def _plain(value: Any) -> Any:
    """The value in Python's own data types: libraries return subclasses and scalars of theirs."""
    room = iter(range(MAX_REPLY_VALUES))

    def plain(value: Any) -> Any:
        if next(room, None) is None:
            raise ValueError(f"it returned more than {MAX_REPLY_VALUES} values")
        if value is None or isinstance(value, bool | complex | date | time | timedelta):
            return value
        for kind in _SCALARS:
            if isinstance(value, kind):
                return kind(value)
        if isinstance(value, dict):
            return {plain(key): plain(item) for key, item in value.items()}
        for collection in (list, tuple, set, frozenset):
            if isinstance(value, collection):
                return collection(plain(item) for item in value)
        if hasattr(value, "tolist"):  # numpy's
            return plain(value.tolist())
        raise TypeError(f"it returned a {type(value).__name__}, which is no plain data")

    return plain(value)


def _cut(error: Exception) -> str:
    text = str(error)  # some quote whole files
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _to_install(packages: list[str]) -> str:
    return f" (pip install {' '.join(packages)})" if packages else ""


class _Env:
    """What OSWorld's getters see as their DesktopEnv."""

    current_use_proxy = False

    def __init__(self, guest: GuestView) -> None:
        self._guest = guest
        self.cache_dir = guest.cache_dir
        self.vm_ip, self.server_port = _split(guest.server)
        _, self.chromium_port = _split(guest.chromium)
        _, self.vlc_port = _split(guest.vlc)

    @property
    def vm_platform(self) -> str:
        return str(self.controller.get_vm_platform())

    @property
    def vm_screen_size(self) -> dict[str, int]:
        return dict(zip(("width", "height"), self._guest.screen, strict=True))

    @cached_property
    def controller(self) -> Any:
        return _Controller(self._guest)


class _Controller:
    """Serves copied files itself and passes everything else to OSWorld's own controller."""

    def __init__(self, guest: GuestView) -> None:
        self._guest = guest

    def get_file(self, path: str) -> bytes | None:
        if path in self._guest.files:
            copy = self._guest.files[path]
            return None if copy is None else Path(copy).read_bytes()
        content: bytes | None = self._upstream.get_file(path)
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upstream, name)

    @cached_property
    def _upstream(self) -> Any:
        if self._guest.server is None:
            raise osworld.Unavailable("the guest has no HTTP address that OSWorld's own getters could ask")
        from desktop_env.controllers.python import PythonController

        host, port = _split(self._guest.server)
        return PythonController(vm_ip=host, server_port=port)


def _connected_to(addresses: Iterable[str]) -> Iterator[str]:
    """What sockets will say for `host:port` addresses: a name's numbers."""
    for address in addresses:
        host, port = _split(address)
        with suppress(OSError):
            for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                yield f"{place[0]}:{port}"


def _split(address: str | None) -> tuple[str, int]:
    host, _, port = (address or "127.0.0.1:0").rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main()
