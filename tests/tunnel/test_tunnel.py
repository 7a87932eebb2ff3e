"""`arpo tunnel up` against the tunnel image's own sshd: it carries, comes back, and says why when it cannot."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_process import descendants, server_process
from tunnel_kit import Pod, Wire, free_port, make_key, needs_sshd, options, pod, tunnel, wait_until

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with pod(tmp_path_factory.mktemp("pod")) as running:
        yield running


@contextmanager
def collector() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """An HTTP listener that keeps what is posted to it."""
    got: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


def test_it_carries_both_ways_says_when_it_is_ready_and_ends_with_its_ssh(tmp_path: Path) -> None:
    local = free_port()
    with (
        collector() as (otlp, got),
        pod(tmp_path / "pod", f"127.0.0.1:{otlp}") as far,
        server_process(tmp_path) as env,
        tunnel(
            tmp_path, *options(far, env_url=env.url), "--otlp", f"127.0.0.1:{local}:127.0.0.1:{otlp}"
        ) as up,
    ):
        up.wait_for("ready: the env-server")
        there = f"http://127.0.0.1:{far.env_port}"
        assert httpx.get(f"{there}/readyz").status_code == 200
        answer = httpx.get(f"{there}/v1/capacity", headers={"Authorization": f"Bearer {env.token}"})
        assert answer.json()["provider"] == "simulated"
        assert httpx.post(f"http://127.0.0.1:{local}/v1/traces", content=b"spans").status_code == 200
        assert got == [("/v1/traces", b"spans")]
        children = descendants(up.process.pid)
        arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in [up.process.pid, *children])
        assert far.key.read_bytes().splitlines()[1] not in arguments
        assert env.token.encode() not in arguments
        assert up.stop() == 0
        assert "stopped" in up.said
        wait_until(lambda: not alive(children), lambda: f"{alive(children)} of {children}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(there)


def alive(processes: Iterable[int]) -> list[int]:
    return [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_a_killed_keeper_leaves_no_ssh_and_the_next_one_gets_the_port(far: Pod, tmp_path: Path) -> None:
    with tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
        children = descendants(up.process.pid)
        assert any(b"/ssh" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not alive(children), lambda: f"{alive(children)} of {children}", 10)
    with tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
        assert "another connection has it" not in up.said


def test_ctrl_c_is_130(far: Pod, tmp_path: Path) -> None:
    with tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
        assert up.stop(signal.SIGINT) == 130


def test_a_lost_connection_is_made_again(far: Pod, tmp_path: Path) -> None:
    wire = Wire(far.port)
    with (
        server_process(tmp_path) as env,
        tunnel(tmp_path, *options(far, port=wire.port, env_url=env.url)) as up,
    ):
        up.wait_for("ready: ")
        wire.cut()
        up.wait_for("lost after")
        up.wait_for("nothing listens at 127.0.0.1")
        wire.mend()
        up.wait_for("ready: ", times=2)
        assert httpx.get(f"http://127.0.0.1:{far.env_port}/healthz").status_code == 200


def test_an_env_server_that_is_not_there_is_named_and_noticed_when_it_comes(far: Pod, tmp_path: Path) -> None:
    port = free_port()
    with tunnel(tmp_path, *options(far, env_url=f"http://127.0.0.1:{port}")) as up:
        up.wait_for(f"no env-server answers at http://127.0.0.1:{port} here; fix: start arpo-env-server")
        assert "ready:" not in up.said
        with server_process(tmp_path, port=port):
            up.wait_for("ready: the env-server")


def test_a_killed_sshd_is_connected_to_again(tmp_path: Path) -> None:
    with pod(tmp_path / "pod") as far, tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
        far.kill()
        up.wait_for("lost after")
        far.start()
        up.wait_for("connected to", times=2)


def test_a_key_that_is_not_known_there_is_told_and_tried_again(far: Pod, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    with tunnel(tmp_path, *options(far), "--key", str(stranger)) as up:
        up.wait_for(f"does not let arpo in with the key {stranger}; fix: add the line of {stranger}.pub")
        up.wait_for("next try in", times=2)
        assert up.said.count("does not let arpo in") == 1, "the same reason again and again"
        known = far.folder / "etc/arpo-tunnel/authorized/authorized_keys"
        before = known.read_text()
        known.write_text(before + stranger.with_suffix(".pub").read_text())
        up.wait_for("connected to")
        known.write_text(before)


def test_another_host_key_than_before_ends_it(far: Pod, tmp_path: Path) -> None:
    with tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
    kept = tmp_path / "config/arpo/tunnel_known_hosts"
    assert str(far.port) in kept.read_text()
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    kept.write_text(f"[127.0.0.1]:{far.port} {other}")
    with tunnel(tmp_path, *options(far)) as up:
        assert up.ended() == 1
        assert (
            f"fix: if it was replaced on purpose: ssh-keygen -R '[127.0.0.1]:{far.port}' -f {kept}" in up.said
        )


def test_a_pinned_host_key_is_the_only_one(far: Pod, tmp_path: Path) -> None:
    right = far.host_key.with_suffix(".pub")
    with tunnel(tmp_path, *options(far), "--host-key", str(right)) as up:
        up.wait_for("connected to")
        assert not (tmp_path / "config/arpo/tunnel_known_hosts").exists()
    wrong = make_key(tmp_path / "other").with_suffix(".pub").read_text().strip()
    with tunnel(tmp_path, *options(far), "--host-key", wrong) as up:
        assert up.ended() == 1
        assert "is not the one that is known" in up.said


def test_a_taken_port_is_told_and_gets_free(far: Pod, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with tunnel(tmp_path, *options(far)) as second:
        second.wait_for("connected to")
        with tunnel(tmp_path / "first", *options(far)) as waits:
            waits.wait_for(f"the cluster does not give port {far.env_port}: another connection has it")
            second.stop()
            waits.wait_for("connected to")


def test_a_port_that_is_taken_here_is_told(far: Pod, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with tunnel(tmp_path, *options(far), "--otlp", f"{port}:jaeger:4318") as up:
            up.wait_for(f"127.0.0.1:{port} is taken on this machine; fix: --otlp")


def test_a_receiver_that_the_cluster_does_not_permit_is_told(far: Pod, tmp_path: Path) -> None:
    port = free_port()
    with tunnel(tmp_path, *options(far), "--otlp", f"{port}:jaeger:4318") as up:
        up.wait_for("connected to")
        with pytest.raises(httpx.TransportError):
            httpx.post(f"http://127.0.0.1:{port}/v1/traces")
        up.wait_for("the cluster's sshd refuses jaeger:4318; fix:")


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("ssh://arpo@nowhere.invalid:2222", "the name nowhere.invalid is not known here"),
        ("ssh://arpo@127.0.0.1:1", "nothing listens at 127.0.0.1 port 1"),
    ],
)
def test_what_may_mend_itself_is_tried_again(far: Pod, tmp_path: Path, to: str, words: str) -> None:
    with tunnel(tmp_path, "--to", to, "--key", str(far.key)) as up:
        up.wait_for(words)
        up.wait_for("next try in", times=2)
        assert up.stop() == 0


def test_the_pod_gives_forwarding_and_nothing_else(far: Pod, tmp_path: Path) -> None:
    def ssh(*arguments: str, user: str = "arpo") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", "-F", "none", "-i", str(far.key), "-p", str(far.port), "-o", "BatchMode=yes",
             "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=accept-new",
             "-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "ExitOnForwardFailure=yes",
             *arguments[:-1], f"{user}@127.0.0.1", *arguments[-1:]],
            capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    for command in ("id", "sh -c id", "exit 0"):
        refused = ssh(command)
        assert (refused.returncode, refused.stdout) == (255, ""), refused
    assert ssh("-s", "sftp").returncode == 255
    assert "remote port forwarding failed" in ssh("-R", f"{free_port()}:127.0.0.1:1", "true").stderr
    assert ssh("-W", f"127.0.0.1:{far.port}", "").returncode == 255, "it reaches more than is permitted"
    assert "Permission denied (publickey)" in ssh("true", user="root").stderr
    assert "Permission denied (publickey)" in ssh("true", user="nobody").stderr


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            "keys/ssh_host_ed25519_key",
            "no host key at /etc/arpo-tunnel/keys/ssh_host_ed25519_key; fix: mount",
        ),
        ("authorized/authorized_keys", "no /etc/arpo-tunnel/authorized/authorized_keys; fix: mount"),
    ],
)
def test_the_pod_names_what_is_not_mounted(tmp_path: Path, broken: str, words: str) -> None:
    made = Pod(tmp_path / "pod")
    (made.folder / "etc/arpo-tunnel" / broken).unlink()
    ended = subprocess.run(made.command(), capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr


def test_the_pod_refuses_what_is_no_host_and_port(tmp_path: Path) -> None:
    made = Pod(tmp_path / "pod", permit_open="jaeger")
    ended = subprocess.run(made.command(), capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert "ARPO_TUNNEL_PERMIT_OPEN=" in ended.stderr


def test_the_client_goes_when_its_keeper_is_told_twice(far: Pod, tmp_path: Path) -> None:
    with tunnel(tmp_path, *options(far)) as up:
        up.wait_for("connected to")
        os.kill(up.process.pid, signal.SIGTERM)
        os.kill(up.process.pid, signal.SIGTERM)
        assert up.ended() == 0
        wait_until(lambda: not descendants(up.process.pid), lambda: up.said)
