"""Linux Landlock through its system calls: a thread gives up, for good, what it does not need.

It binds below Python: a C library that opens a file, and a program that is started, are bound as well.

Invariant: `restrict` either restricted the calling thread (and what it starts) or raised OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

# Access to files, by the ABI version that knows it: all 13 of the first, then one for each of 2, 3 and 5.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_FIRST_ABI = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_UNIX_SOCKETS = 1


@cache
def abi() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    version: int = _libc().syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(version, 0)


def restrict(*, readable: Iterable[Path], writable: Iterable[Path], network: bool) -> None:
    """From here on the calling thread reads below `readable` and does anything below `writable`; nothing else.

    What does not exist is passed over. network: whether TCP stays possible (kernels before 6.7 cannot forbid it).
    Raises OSError when the kernel refuses.
    """
    version = abi()
    files = _FIRST_ABI
    files |= _REFER if version >= 2 else 0
    files |= _TRUNCATE if version >= 3 else 0
    files |= _IOCTL_DEV if version >= 5 else 0
    attributes = [files]
    if version >= 4:
        attributes.append(0 if network else _BIND_TCP | _CONNECT_TCP)
    if version >= 6:
        attributes.append(_ABSTRACT_UNIX_SOCKETS)
    ruleset = _call(_CREATE_RULESET, struct.pack(f"={len(attributes)}Q", *attributes), 8 * len(attributes), 0)
    try:
        for paths, access in ((readable, _READ & files), (writable, files)):
            for path in paths:
                _allow(ruleset, path, access)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes) -> int:
    result: int = _libc().syscall(
        ctypes.c_long(number),
        *(ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {errno.errorcode.get(code, code)}")
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
