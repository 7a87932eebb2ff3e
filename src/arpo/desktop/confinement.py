"""What an evaluator may touch of this host while one call runs.

Metrics and getters are OSWorld's own code and open whatever path a task, or the guest, hands them. Two walls:
an audit hook sees what Python code does and says what it refused; Landlock, where the kernel has it, stops what
happens below Python (C libraries, programs). What a C library opens would fail there without a word, so the metrics
that hand a path to one have their arguments and options checked beforehand.

This holds evaluators that are careless with paths, not evaluators that attack this process.

Invariant: nothing of this host outside the episode's folder, the process's own folder and the installed software is
read or written in a call whose `Guard.refused` stayed empty.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from arpo.desktop import landlock
from arpo.desktop.addresses import AddressPolicy, AddressRefused

TAKES_PATHS = frozenset({
    "check_file_exists", "check_file_exists_and_structure_sim", "check_image_file_size", "check_json",
    "check_libre_locale", "check_line_number", "check_palette_and_structure_sim", "check_sharper", "compare_archive",
    "compare_audios", "compare_image_text", "compare_pdf_images", "compare_pdfs", "compare_table",
    "compare_triangle_positions", "compare_videos", "run_sqlite3",
})  # fmt: skip
"""Metrics that hand a path to a C library, or only ask whether it is there; neither can be seen from Python."""

_DATA = frozenset(
    {"file_type", "is_yaml", "line_number", "max_frames_to_check", "rule", "rules", "threshold"}
)
"""Their parameters that are compared with and never opened: they may well name files of the guest."""

_NAMES = frozenset({"file_path", "filename"})
"""Parameters of `check_file_exists` and options of `compare_archive` that are joined to one of the paths."""

_PROGRAMS = frozenset({
    "file", "which", "xwdtopnm", "pnmtopng", "fpcalc", "node",  # what metrics and Playwright start
    "ldconfig", "gcc", "cc", "ld", "uname", "lscpu",  # what Python's own library asks
})  # fmt: skip

_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/System/Library", "/Library/Fonts", "/etc/alternatives",
    "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/locale.alias", "/etc/localtime",
    "/etc/magic", "/etc/magic.mime", "/etc/mime.types", "/etc/os-release", "/etc/pki/tls/certs",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/timezone", "/private/etc/ssl", "/var/cache/fontconfig",
    "/var/db/timezone", "/dev/urandom", "/dev/random",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory", "/proc/self/fd", "/proc/self/maps",
    "/proc/self/stat", "/proc/self/statm", "/proc/self/status", "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage",
)  # fmt: skip

# What the C library reads to resolve a name; a task that asks for one of these by name is refused.
_RESOLVER = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services",
    "/etc/protocols",
)  # fmt: skip

_NULL = Path(os.devnull)
_IN_MEMORY = ":memory:"  # to SQLite
_ATTACHES = re.compile(r"\b(attach|vacuum)\b", re.IGNORECASE)


class Guard:
    """The limits of one call.

    folder: the episode's folder; None: no files but the process's and the software's. own: the process's own folder.
    guest: `host:port` of what the guest serves. allow: which other addresses may be reached.
    any_program: whether any program may be started.
    """

    def __init__(
        self,
        folder: Path | None,
        own: Path,
        *,
        guest: frozenset[str],
        allow: AddressPolicy,
        any_program: bool,
    ) -> None:
        self.refused: list[str] = []
        """What was tried in vain, in words."""
        episode = () if folder is None else (folder,)
        self._writable = tuple(_real(path) for path in (*episode, own, _NULL))
        self._readable = (*self._writable, *_software())
        self._folder = None if folder is None else _real(folder)
        self._guest = guest
        self._allow = allow
        self._any_program = any_program

    def check_arguments(
        self,
        name: str,
        metric: Callable[..., object],
        arguments: tuple[object, ...],
        options: Mapping[str, object],
    ) -> None:
        """Refuse what leads outside the episode's folder in what a metric of `TAKES_PATHS` is given.

        Arguments are judged by the parameter that takes them: an option can stand for any argument. Raises
        PermissionError.
        """
        if name not in TAKES_PATHS:
            return
        try:
            given = dict(_by_parameter(metric, arguments, options))
        except TypeError:  # calling it fails with the same words
            return
        paths = [text for key, value in given.items() if key not in _DATA | _NAMES for text in _texts(value)]
        for path in paths:
            if path != _IN_MEMORY and not self._of_episode(path):
                self._refuse(f"read {path!r:.200}")
        for joined in (text for key in _NAMES & given.keys() for text in _texts(given[key])):
            if not all(self._of_episode(str(Path(path, joined))) for path in (*paths, self._folder or "")):
                self._refuse(f"read {joined!r:.200}")
        if name == "run_sqlite3" and any(map(_ATTACHES.search, _texts(given.get("rules")))):
            self._refuse("open other databases in its SQL")

    def confine_thread(self, *, network: bool) -> None:
        """Let the kernel hold the calling thread to the same limits, for good, where it can. Raises OSError."""
        if landlock.abi() == 0:
            return
        names = _RESOLVER if network else ()
        landlock.restrict(
            readable=[*map(Path, self._readable), *map(Path, names)],
            writable=[Path(path) for path in self._writable],
            network=network or self._any_program,
        )

    def see(self, event: str, arguments: tuple[object, ...]) -> None:
        """Refuse an audit event that is outside the limits. Raises PermissionError."""
        check = _CHECKS.get(event)
        if check is not None:
            check(self, arguments)

    def _of_episode(self, path: str) -> bool:
        return self._folder is not None and _within(_real(path), (self._folder,))

    def _open(self, arguments: tuple[object, ...]) -> None:
        path, mode, flags = arguments
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if writes or (isinstance(flags, int) and flags & _WRITING):
            self._write((path,))
        else:
            self._read((path,))

    def _read(self, arguments: tuple[object, ...]) -> None:
        path = _path(arguments[0])
        if path is not None and not _within(_real(path), self._readable):
            self._refuse(f"read {path!r:.200}")

    def _write(self, arguments: tuple[object, ...]) -> None:
        path = _path(arguments[0])
        if path is not None and not _within(_real(path), self._writable):
            self._refuse(f"write {path!r:.200}")

    def _write_both(self, arguments: tuple[object, ...]) -> None:
        self._write(arguments[:1])
        self._write(arguments[1:2])

    def _link(self, arguments: tuple[object, ...]) -> None:
        self._write(arguments[1:2])  # where a link leads is judged when it is followed

    def _database(self, arguments: tuple[object, ...]) -> None:
        path = _path(arguments[0])
        if path is None or path == _IN_MEMORY:
            return
        if path.startswith("file:"):
            self._refuse(f"open the database {path!r:.200}")
        self._write((path,))

    def _library(self, arguments: tuple[object, ...]) -> None:
        path = _path(arguments[0])
        if path is not None and Path(path).name != path:
            self._read((path,))
            if _within(_real(path), self._writable):
                self._refuse(f"load the library {path!r:.200}")

    def _program(self, arguments: tuple[object, ...]) -> None:
        if self._any_program:
            return
        program = _path(arguments[0]) or ""
        name = Path(program).name
        own_making = name != program and _within(_real(program), self._writable)
        if name not in _PROGRAMS or own_making:
            self._refuse(f"start the program {program!r:.200}")

    def _shell(self, arguments: tuple[object, ...]) -> None:
        if not self._any_program:
            self._refuse("start a program")

    def _send(self, arguments: tuple[object, ...]) -> None:
        address = arguments[1]
        if not isinstance(address, tuple) or len(address) < 2:
            self._refuse("use a socket of this host")
            return
        host, port = str(address[0]), address[1]
        if f"{host}:{port}" in self._guest:
            return
        try:
            self._allow.check(host, host)
        except AddressRefused as error:
            self._refuse(f"connect to {host!r:.100} port {port}: {error}")

    def _refuse(self, what: str) -> None:
        self.refused.append(what)
        raise PermissionError(errno.EACCES, f"an evaluator may not {what}")


@contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """Hold everything that this process does to `guard`'s limits."""
    global _installed, _guard
    if not _installed:
        sys.addaudithook(_hook)  # hooks cannot be taken away again
        _installed = True
    _guard = guard
    try:
        yield
    finally:
        _guard = None


_installed = False
_guard: Guard | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _guard is not None:
        _guard.see(event, arguments)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_CHECKS: dict[str, Callable[[Guard, tuple[object, ...]], None]] = {
    "open": Guard._open,
    "os.listdir": Guard._read,
    "os.scandir": Guard._read,
    "os.chdir": Guard._read,
    "os.listxattr": Guard._read,
    "os.getxattr": Guard._read,
    "sqlite3.connect": Guard._database,
    "ctypes.dlopen": Guard._library,
    "os.rename": Guard._write_both,
    "os.link": Guard._write_both,
    "os.symlink": Guard._link,
    "subprocess.Popen": Guard._program,
    "socket.connect": Guard._send,
    "socket.sendto": Guard._send,
    "socket.sendmsg": Guard._send,
    **dict.fromkeys(
        ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod", "os.chown", "os.chflags",
         "os.setxattr", "os.removexattr", "shutil.rmtree"),
        Guard._write,
    ),
    **dict.fromkeys(
        ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"),
        Guard._shell,
    ),
}  # fmt: skip


@cache  # what a metric adds to the import path later is not software
def _software() -> tuple[str, ...]:
    """Python, the packages it imports from, and what the system installs for every program."""
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    imported = (entry for entry in sys.path if entry and Path(entry).parent != Path(entry))
    fonts = (
        (f"{os.environ['SYSTEMROOT']}\\{name}" for name in ("Fonts", "System32"))
        if sys.platform == "win32"
        else ()
    )
    return tuple(dict.fromkeys(_real(path) for path in (*python, *imported, *_SYSTEM, *fonts)))


def _by_parameter(
    metric: Callable[..., object], arguments: tuple[object, ...], options: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
    """What each parameter of a call is given; options without one count by their own names. Raises TypeError."""
    signature = inspect.signature(metric)
    for name, value in signature.bind_partial(*arguments, **options).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _texts(value: object) -> Iterator[str]:
    """Every string in a value, keys included: some metrics iterate over whatever they are given."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts((*value.keys(), *value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)


def _path(value: object) -> str | None:
    """A path argument of an audit event; None for a descriptor, or for none."""
    if isinstance(value, bytes | str | os.PathLike):
        return os.fsdecode(value)
    return None


def _real(path: str | Path) -> str:
    try:
        return os.path.normcase(os.path.realpath(path))
    except (OSError, ValueError):  # a NUL: opening it fails by itself
        return ""


def _within(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)
