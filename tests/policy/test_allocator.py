"""Large blocks go back to the system when they are freed, however large those were that were freed before."""

import os
import subprocess
import sys

import pytest

from policy_kit import MAX_PIXELS, MIN_PIXELS, tiny_folder

# What a step does: blocks of a few MiB, with small ones between them that are kept.
STEP = """
import ctypes, os
from pathlib import Path

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def block(kib):
    address = libc.malloc(kib << 10)
    ctypes.memset(address, 1, kib << 10)
    return address

def mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

libc.free(block(30 << 10))
before = mib()
blocks = [(block(2 << 10), block(100)) for _ in range(40)]
for large, _ in blocks:
    libc.free(large)
print(mib() - before)
"""
IN_USE_MIB = 40 * 100 / 1024
LARGE_MIB = 40 * 2
TOLD = "from arpo.policy.allocator import map_large_blocks; map_large_blocks()"

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="the C library is not glibc"
)


def grown_mib(first, **environment):
    """By how much a process grows in a step; first: what it does before."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", first + STEP],
        env={**own, **environment}, capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def test_large_blocks_are_given_back():
    assert grown_mib("") > LARGE_MIB / 2  # else this test shows nothing
    assert grown_mib(TOLD) < IN_USE_MIB + 4


@pytest.mark.parametrize(
    "chosen",
    [
        {"MALLOC_MMAP_THRESHOLD_": "33554432"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"},
    ],
)
def test_what_the_environment_chose_stays(chosen):
    assert grown_mib(TOLD, **chosen) > LARGE_MIB / 2


def test_a_process_that_loads_a_policy_gives_them_back():
    first = f"""
from arpo.policy.load import load_policy
load_policy({str(tiny_folder())!r}, device="meta", weights=False, min_pixels={MIN_PIXELS}, max_pixels={MAX_PIXELS})
"""
    assert grown_mib(first) < IN_USE_MIB + 4
