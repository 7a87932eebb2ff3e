"""The tunnel's two ends as they are: the image's sshd in its own start script and at its own paths, and `arpo tunnel up`.

The pod is made by bwrap: a read-only root, uid 10001 named `arpo`, the mounts of the chart. It shares this machine's
network, so its ports are made other ones; everything else of the configuration is the image's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
IMAGE = ROOT / "images" / "env-server" / "tunnel"
UNPACKED = ROOT / ".cache" / "openssh-server"
LINUX_LIBRARIES = ":".join(map(str, (UNPACKED / "usr" / "lib").glob("*-linux-gnu*")))


def sshd_path() -> Path | None:
    """The sshd that is installed, or that `scripts/setup.sh` has unpacked."""
    return next((p for p in (Path("/usr/sbin/sshd"), UNPACKED / "usr/sbin/sshd") if p.exists()), None)


def missing() -> str:
    """Why there can be no tunnel on this machine; empty when there can."""
    if sshd_path() is None:
        return "no sshd: neither installed nor unpacked (scripts/setup.sh does)"
    for program in ("ssh", "ssh-keygen", "bwrap"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(
        ["bwrap", "--unshare-user", "--uid", "10001", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        check=False,
    )
    return f"bwrap makes no user namespace here: {tried.stderr.decode().strip()}" if tried.returncode else ""


needs_sshd = pytest.mark.skipif(bool(missing()), reason=f"the tunnel's sshd cannot run here: {missing()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_key(path: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path), *options], check=True)
    return path


@dataclass
class Pod:
    """The tunnel pod. port: of its sshd. env_port: 15001 in the image."""

    folder: Path
    permit_open: str = ""
    port: int = field(default_factory=free_port)
    env_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        mounts = self.folder / "etc" / "arpo-tunnel"
        for name in ("keys", "authorized"):
            (mounts / name).mkdir(parents=True)
            # as Kubernetes mounts a Secret with fsGroup
            (mounts / name).chmod(0o777)
        (self.folder / "run" / "arpo").mkdir(parents=True)
        (self.folder / "run" / "arpo").chmod(0o777)
        self.host_key = make_key(mounts / "keys" / "ssh_host_ed25519_key")
        self.host_key.chmod(0o440)
        self.key = make_key(self.folder / "client_key")
        (mounts / "authorized" / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        config = (IMAGE / "sshd_config").read_text()
        config = config.replace("Port 2222\n", f"Port {self.port}\nListenAddress 127.0.0.1\n")
        (mounts / "sshd_config").write_text(
            config.replace("PermitListen 15001", f"PermitListen {self.env_port}")
        )
        for name, line in (
            ("passwd", "arpo:x:10001:10001::/nonexistent:/usr/sbin/nologin"),
            ("group", "arpo:x:10001:"),
        ):
            (self.folder / "etc" / name).write_text(f"{Path('/etc', name).read_text()}{line}\n")
        for name in ("hosts", "nsswitch.conf", "ld.so.cache"):
            if Path("/etc", name).exists():
                shutil.copy(Path("/etc", name), self.folder / "etc" / name)

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def command(self) -> list[str]:
        """bwrap, the mounts, and the image's start script."""
        env = {
            "ARPO_TUNNEL_SSHD": str(sshd_path()),
            "ARPO_TUNNEL_PERMIT_OPEN": f"127.0.0.1:{self.env_port} {self.permit_open}".strip(),
            "LD_LIBRARY_PATH": LINUX_LIBRARIES,
        }
        return [
            "bwrap", "--die-with-parent", "--unshare-user", "--unshare-pid", "--uid", "10001", "--gid", "10001",
            "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--ro-bind", str(self.folder / "etc"), "/etc",
            "--bind", str(self.folder / "run"), "/run",
            *(word for name, value in env.items() for word in ("--setenv", name, value)),
            str(IMAGE / "arpo-tunnel-sshd"),
        ]  # fmt: skip

    def start(self) -> None:
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: self._answers(), lambda: self.log)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as tried:
            return tried.recv(4) == b"SSH-"
        return False


@contextlib.contextmanager
def pod(folder: Path, permit_open: str = "") -> Iterator[Pod]:
    """A running tunnel pod."""
    made = Pod(folder, permit_open)
    made.start()
    try:
        yield made
    finally:
        made.kill()


class Wire:
    """A TCP line to a port that can be cut: connections there are reset, new ones refused, until it is mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.connections = 0
        self.mend()

    def mend(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in list(self._open):
            _reset(end)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                _reset(near)
                continue
            self.connections += 1
            far.settimeout(None)
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)


@dataclass
class Tunnel:
    """`arpo tunnel up` as a process."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str, timeout_s: float = 30, *, times: int = 1) -> None:
        wait_until(lambda: self.said.count(words) >= times, lambda: self.said, timeout_s)

    def ended(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()


@contextlib.contextmanager
def tunnel(folder: Path, *arguments: str, **env: str) -> Iterator[Tunnel]:
    """`arpo tunnel up` with arguments."""
    output = folder / "tunnel.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "arpo.cli", "tunnel", "up", *arguments],
            cwd=ROOT, env={**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), **env},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Tunnel(process, output)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def options(to: Pod, *, port: int | None = None, env_url: str = "http://127.0.0.1:1") -> list[str]:
    """The arguments of `arpo tunnel up` to a pod. port: of a wire in between."""
    return [
        "--to", f"ssh://arpo@127.0.0.1:{port or to.port}", "--key", str(to.key),
        "--env", env_url.removeprefix("http://"), "--remote", f"127.0.0.1:{to.env_port}",
    ]  # fmt: skip


def wait_until(condition, what, timeout_s: float = 30) -> None:
    """Poll until it holds; fails with `what()` after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
