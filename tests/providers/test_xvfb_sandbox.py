"""A sandboxed desktop sees nothing of its host, and the host keeps nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import arpo
from arpo.guest_client import GuestError
from arpo.protocol.problems import ConfigError
from arpo.providers.base import Guest, ProviderError
from arpo.providers.registry import make_provider
from arpo.providers.xvfb import XvfbProvider
from arpo.providers.xvfb.run_folder import RunFolder

pytestmark = pytest.mark.xvfb

REPOSITORY = Path(__file__).parents[2]


def desktop_processes() -> set[int]:
    """Host ids of the processes of desktops that this process (or one it started) has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, its_parent in parents.items() if its_parent == parent]
        found.update(children)
        waiting += children
    return found


@pytest.fixture(autouse=True)
def _adopts_orphans() -> Iterator[None]:
    """What loses its parent becomes a child of this process, so that no leftover process can hide."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


def leftovers() -> tuple[set[int], list[str], list[str]]:
    """What a desktop could leave behind: processes, mounts, temporary files."""
    files = [str(path) for path in Path(tempfile.gettempdir()).rglob("*")]
    return desktop_processes(), Path("/proc/mounts").read_text().splitlines(), files


@pytest.fixture
def own_tmp(monkeypatch) -> Iterator[Path]:
    """A folder for temporary files that nobody else uses."""
    with tempfile.TemporaryDirectory(
        dir="/tmp"
    ) as folder:  # short: a socket's path has at most 107 characters
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_hosts_files_are_not_there(desk) -> None:
    assert desk.shell("ls /").split() == [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib64",
        "opt",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
    ]
    for path in (
        REPOSITORY,
        Path.home(),
        Path(sys.prefix),
        Path(tempfile.gettempdir()) / "pytest-of-root",
        "/root",
        "/sys",
    ):
        assert desk.python(f"import os; print(os.path.exists({str(path)!r}))") == "False"
    assert desk.shell("ls /home /usr/local /usr/src /opt").split() == [
        "/home:",
        "user",
        "/opt:",
        "arpo",
        "/usr/local:",
        "/usr/src:",
    ]
    assert desk.shell("cat /etc/passwd | wc -l") == "3\n"
    assert desk.shell("cat /etc/shadow /etc/ssh/* 2>/dev/null || echo nothing") == "nothing\n"


def test_of_arpo_only_the_guest_package_is_there(desk) -> None:
    """Task files contain the answers."""
    assert desk.shell("ls /opt/arpo").split() == ["arpo_guest", "bin", "home", "lib"]
    assert desk.shell("ls /opt/arpo/lib | grep -v __pycache__").split() == ["Xlib", "mss", "six.py"]
    assert (
        desk.shell("find / -xdev \\( -name '*suites*' -o -name 'desktop_env*' \\) 2>/dev/null || true") == ""
    )
    assert desk.python("import importlib.util as i; print(i.find_spec('arpo'))") == "None"


def test_nothing_of_the_hosts_processes_shows(desk) -> None:
    ids = [int(pid) for pid in desk.shell("ls /proc").split() if pid.isdigit()]
    assert len(ids) < 40
    assert str(REPOSITORY) not in desk.shell(
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    )
    assert desk.shell("hostname").strip() == "desktop"


def test_there_is_no_network_but_loopback(desk) -> None:
    # read from the kernel: `ip` need not be installed
    assert re.findall(r"^ *(\w+):", desk.shell("cat /proc/net/dev"), flags=re.MULTILINE) == ["lo"]
    assert "127.0.0.1" in desk.shell("cat /proc/net/fib_trie")
    with socket_of_the_host() as port:
        code = (
            f"import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('127.0.0.1', {port})))"
        )
        assert desk.python(code) != "0"


class socket_of_the_host:  # noqa: N801
    """A port that listens on the host's loopback."""

    def __enter__(self) -> int:
        import socket

        self.socket = socket.create_server(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_the_user_is_nobody_on_the_host_and_has_no_capabilities(desk) -> None:
    uid = int(desk.shell("id -u"))
    assert uid != 0
    if os.geteuid() == 0:
        assert 61000 <= uid < 61184
    status = desk.shell("cat /proc/self/status")
    assert re.findall(r"Cap(?:Prm|Eff|Inh|Amb):\s*(\w+)", status) == ["0" * 16] * 4
    assert "NoNewPrivs:\t1" in status
    assert desk.shell("touch /usr/x /etc/x /opt/arpo/x /x 2>/dev/null; echo $?") == "1\n"


def test_programs_can_neither_end_nor_inspect_the_first_process(desk) -> None:
    assert desk.shell("kill -9 1; kill -TERM 1; sleep 0.2; ps -o stat= -p 1").strip()[0] == "S"
    assert desk.shell("ls /proc/1/fd /proc/1/root 2>/dev/null | wc -l") == "0\n"


def test_writable_places_are_bounded(desk) -> None:
    sizes = desk.shell("df -B1 --output=target,size /home /tmp /dev/shm /run/user").split("\n")[1:-1]
    assert all(0 < int(line.split()[1]) <= 4 << 30 for line in sizes)
    assert len(sizes) == 4
    assert int(desk.shell("bash -c 'ulimit -u'")) <= 4096


def test_two_desktops_share_nothing(desk) -> None:
    async def other() -> tuple[str, str, str]:
        guest = await desk.provider.start()
        try:
            await guest.client.write_file("/tmp/secret", b"x")
            here = await guest.client.execute("id -u; ls /tmp; echo $DISPLAY", shell=True)
            there = await desk.client.execute("ls /tmp; ipcs", shell=True)
            own = await desk.client.execute("id -u", shell=True)
        finally:
            await desk.provider.stop(guest)
        return here.output, there.output, own.output

    here, there, own_uid = desk.run(other())
    assert "secret" in here
    assert ":0" in here  # each has a display number of its own world
    assert "secret" not in there
    if os.geteuid() == 0:
        assert here.split()[0] != own_uid.strip()


def test_stop_leaves_no_process_no_mount_no_file(sandboxed: None, own_tmp: Path) -> None:
    async def use_and_stop() -> None:
        provider = XvfbProvider()
        guest = await provider.start()
        await guest.client.launch(["xterm", "-e", "sh", "-c", "setsid sleep 1000 & sleep 1000"])
        await guest.client.execute("until pgrep sleep; do sleep 0.02; done", shell=True)
        assert len(desktop_processes() - before[0]) > 5
        guest = await provider.expose(guest)
        await provider.stop(guest)
        await provider.stop(guest)  # gone already
        assert desktop_processes() <= before[0]
        await provider.close()

    before = leftovers()
    asyncio.run(use_and_stop())
    assert leftovers() == before


def test_reset_is_a_clean_desktop(sandboxed: None, own_tmp: Path) -> None:
    async def run() -> None:
        provider = XvfbProvider()
        try:
            used = await provider.start()
            await used.client.write_file("~/Desktop/left.txt", b"")
            await used.client.launch(["xterm"])
            fresh = await provider.reset(used)
            assert fresh.id != used.id
            assert (await fresh.client.execute("ls ~/Desktop; pgrep xterm || true", shell=True)).output == ""
            with pytest.raises(GuestError):
                await used.client.screenshot()
        finally:
            await provider.close()

    before = leftovers()
    asyncio.run(run())
    assert leftovers() == before


def test_an_office_program_takes_its_profile_for_its_own(sandboxed: None, own_tmp: Path) -> None:
    """Else its first start goes through all extensions, writes down its build and takes twice as long."""

    async def main() -> None:
        provider = XvfbProvider()
        try:
            client = (await provider.start()).client
            look = "stat -c '%i %y' ~/.config/libreoffice/4/user/extensions/buildid"
            before = (await client.execute(look, shell=True)).output
            assert (await client.execute(["soffice", "--headless", "--terminate_after_init"])).returncode == 0
            assert (await client.execute(look, shell=True)).output == before != ""
        finally:
            await provider.close()

    asyncio.run(main())


def test_a_cancelled_start_leaves_nothing(sandboxed: None, own_tmp: Path) -> None:
    async def run() -> None:
        provider = XvfbProvider()
        await provider.preflight()
        idle = desktop_processes()
        for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1):
            task = asyncio.create_task(provider.start())
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert desktop_processes() <= idle
        await provider.close()

    before = leftovers()
    asyncio.run(run())
    time.sleep(0.2)
    assert leftovers() == before


def test_a_cancelled_reset_leaves_neither_the_used_nor_the_fresh_desktop(
    sandboxed: None, own_tmp: Path
) -> None:
    before = desktop_processes()

    async def main() -> None:
        provider = XvfbProvider()
        try:
            for delay_s in (0.0, 0.01, 0.05, 0.2, 0.4):
                used = await provider.start()
                resetting = asyncio.create_task(provider.reset(used))
                await asyncio.sleep(delay_s)
                resetting.cancel()
                (fresh,) = await asyncio.gather(resetting, return_exceptions=True)
                for guest in (used, fresh):
                    if isinstance(guest, Guest):
                        await provider.stop(guest)
                assert desktop_processes() == before, delay_s
        finally:
            await provider.close()

    asyncio.run(main())


def test_closing_ends_desktops_that_are_still_booting(sandboxed: None, own_tmp: Path) -> None:
    async def run() -> None:
        for delay_s in (0.0, 0.02, 0.1, 0.3):
            provider = XvfbProvider()
            await provider.preflight()
            tasks = [asyncio.create_task(provider.start()) for _ in range(2)]
            await asyncio.sleep(delay_s)
            await provider.close()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            # on an idle machine the last ones may be up already, and are then ended like any other
            allowed = (ProviderError,) if delay_s < 0.1 else (ProviderError, Guest)
            assert all(isinstance(result, allowed) for result in results)

    before = leftovers()
    asyncio.run(run())
    assert leftovers() == before


def test_everything_dies_with_the_provider_even_when_it_is_killed(sandboxed: None, tmp_path: Path) -> None:
    program = """
import asyncio, contextlib
from arpo.guest_client import GuestError
from arpo.providers.xvfb import XvfbProvider

async def main():
    guest = await XvfbProvider().start()
    await guest.client.launch(["xterm", "-e", "sh", "-c", "setsid sleep 1000 & sleep 1000"])
    await guest.client.execute("until pgrep sleep; do sleep 0.02; done", shell=True)
    with contextlib.suppress(GuestError):  # on a busy machine it comes before the answer
        await guest.client.launch(["sh", "-c", "sleep 0.2; kill -STOP 1 2"])  # what a hostile program could try
    await asyncio.sleep(0.4)
    print("up", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""
    before = desktop_processes()
    provider = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert provider.stdout is not None
    assert provider.stdout.readline() == b"up\n"
    theirs = desktop_processes() - before - {provider.pid}
    assert len(theirs) > 5
    provider.send_signal(signal.SIGKILL)
    provider.wait()
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in theirs):
        assert time.monotonic() < deadline, [pid for pid in theirs if is_alive(pid)]
        time.sleep(0.02)


def test_a_provider_killed_while_desktops_boot_leaves_nothing(sandboxed: None, tmp_path: Path) -> None:
    program = """
import asyncio
from arpo.providers.xvfb import XvfbProvider

async def main():
    provider = XvfbProvider()
    await provider.preflight()
    print("starting", flush=True)
    await asyncio.gather(*(provider.start() for _ in range(3)))
    await asyncio.sleep(1000)

asyncio.run(main())
"""
    before = desktop_processes()
    for delay_s in (0.0, 0.02, 0.06, 0.12, 0.25):
        provider = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert provider.stdout is not None
        assert provider.stdout.readline() == b"starting\n"
        time.sleep(delay_s)
        provider.send_signal(signal.SIGKILL)
        provider.wait()
    deadline = time.monotonic() + 10
    while desktop_processes() - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_folders_of_killed_providers_are_swept_and_those_of_living_ones_stay(own_tmp: Path) -> None:
    living = RunFolder()
    dead = own_tmp / "arpo-xvfb-dead"
    dead.mkdir()
    (dead / "lock").touch()
    other = RunFolder()
    assert living.path.exists()
    assert not dead.exists()
    living.remove()
    other.remove()
    assert list(own_tmp.iterdir()) == []


async def look_for_ever(guest: Guest) -> None:
    async with asyncio.timeout(5):
        while True:
            await guest.client.screenshot()


def test_a_desktop_that_dies_is_a_guest_error(sandboxed: None) -> None:
    async def run() -> None:
        provider = XvfbProvider()
        try:
            guest = await provider.start()
            with contextlib.suppress(
                GuestError
            ):  # the desktop may be gone before it has said that it launched
                await guest.client.launch(["pkill", "Xvfb"])
            with pytest.raises(GuestError):
                await look_for_ever(guest)
            await provider.stop(guest)
        finally:
            await provider.close()

    asyncio.run(run())


def test_a_desktop_that_cannot_boot_says_why(sandboxed: None, own_tmp: Path) -> None:
    async def run() -> None:
        provider = XvfbProvider(screen=(0, 0))
        try:
            with pytest.raises(ProviderError, match=r"did not start.*Xvfb"):
                await provider.start()
        finally:
            await provider.close()

    before = leftovers()
    asyncio.run(run())
    assert leftovers() == before


def test_missing_programs_are_named_with_their_packages(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(
        ConfigError, match=r"Xvfb, .*openbox.* not found; fix: apt-get install xvfb .*openbox"
    ):
        asyncio.run(XvfbProvider().preflight())


def test_a_machine_that_refuses_namespaces_is_told_so_with_the_way_out(sandboxed: None) -> None:
    """User namespaces are switched off for a program as a hardened machine switches them off for all."""
    program = """
import asyncio, sys
from pathlib import Path
from arpo.protocol.problems import ConfigError
from arpo.providers.xvfb import preflight
from arpo.providers.xvfb.sandbox import Identity

try:
    asyncio.run(preflight.check_sandbox(Identity(1000, privileged=False), Path("/usr/share")))
except ConfigError as error:
    print(error)
"""
    limits = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"',
        "sh",
    ]
    output = subprocess.run(
        [*limits, sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"refuses a sandbox: .*; fix: .*run as root.*env.sandbox=none", output)


def test_without_a_sandbox_the_same_desktop_runs_and_ends_as_completely(own_tmp: Path, caplog) -> None:
    async def run() -> Guest:
        provider = make_provider("xvfb", screen=(800, 600), sandbox="none")
        try:
            await provider.preflight()
            guest = await provider.start()
            await guest.client.launch(["sh", "-c", "setsid sleep 1000 & setsid xterm & sleep 1000"])
            await guest.client.write_file("/home/user/Desktop/a.txt", b"here")
            output = (await guest.client.execute("cat /home/user/Desktop/a.txt; pwd", shell=True)).output
            assert output.startswith("here")
            assert not output.endswith("/home/user\n")
            assert len(await guest.client.screenshot()) > 1000
            assert len(desktop_processes() - before[0]) > 5
            await provider.stop(guest)
            assert desktop_processes() <= before[0]
        finally:
            await provider.close()
        return guest

    before = leftovers()
    asyncio.run(run())
    assert "WITHOUT a sandbox" in caplog.text
    assert leftovers() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_gets_the_same_desktop_through_user_namespaces(
    sandboxed: None, tmp_path: Path
) -> None:
    program = """
import asyncio, json
from arpo.providers.xvfb import XvfbProvider

async def main():
    provider = XvfbProvider()
    await provider.preflight()
    guest = await provider.start()
    result = await guest.client.execute("id -u; id -un; ls /root /home; grep Cap /proc/self/status", shell=True)
    picture = await guest.client.screenshot()
    await provider.close()
    print(json.dumps([result.output, len(picture)]))

asyncio.run(main())
"""
    tmp_path.chmod(0o777)
    python, packages = ordinary_users_python()
    finished = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, "-c", program],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": packages,
            "TMPDIR": str(tmp_path),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    if "refuses a sandbox" in finished.stderr:
        pytest.skip(finished.stderr.strip().splitlines()[-1])
    assert finished.returncode == 0, finished.stderr
    assert "1000\\nuser\\n/home:\\nuser\\n" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def ordinary_users_python() -> tuple[str, str]:
    """A Python of our version that an ordinary user may run, and where its packages are."""
    python = "/usr/bin/python3"
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
    )
    if version.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"{python} is not of the version that the packages are installed for")
    packages = Path(arpo.__file__).parents[1], Path(pytest.__file__).parents[1]
    probe = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "ls", *map(str, packages)],
        capture_output=True,
    )
    if probe.returncode:
        pytest.skip("the checkout or its packages cannot be read by an ordinary user")
    return python, ":".join(map(str, packages))
