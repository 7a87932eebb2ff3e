"""The tunnel's image: a real ssh connection carries a port into the container, and nothing else is to be had."""

from __future__ import annotations

import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from podman import RESTRICTED, logs, need, podman, running, until

IMAGE = "localhost/arpo-tunnel:latest"
_ASK = "exec 3<>/dev/tcp/127.0.0.1/15001 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"


class Readyz(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"far side")


def key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def test_a_port_of_this_side_is_reached_in_the_container(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here: apt-get install openssh-client")
    image = need(IMAGE)
    keys, authorized = tmp_path / "keys", tmp_path / "authorized"
    for folder in (keys, authorized):
        folder.mkdir(mode=0o755)
    key(keys / "ssh_host_ed25519_key").chmod(0o444)  # a Secret's file, readable by its group
    mine = key(tmp_path / "mine")
    shutil.copy(mine.with_suffix(".pub"), authorized / "authorized_keys")
    mounts = [
        f"--volume={keys}:/etc/arpo-tunnel/keys:ro",
        f"--volume={authorized}:/etc/arpo-tunnel/authorized:ro",
    ]

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Readyz) as far,
        running(image, *RESTRICTED, *mounts, "--publish", "127.0.0.1::2222") as container,
    ):
        threading.Thread(target=far.serve_forever, daemon=True).start()
        until(lambda: "listening on" in logs(container), container)
        port = podman("port", container, "2222").stdout.strip().rpartition(":")[2]
        options = [
            f"-p{port}",
            f"-i{mine}",
            "-oStrictHostKeyChecking=no",
            f"-oUserKnownHostsFile={tmp_path / 'known'}",
        ]
        options += ["-oBatchMode=yes", "-oExitOnForwardFailure=yes", "-oIdentitiesOnly=yes", "arpo@127.0.0.1"]
        refused = subprocess.run(
            ["ssh", *options, "id"], capture_output=True, text=True, timeout=30, check=False
        )
        assert refused.returncode != 0
        assert "uid=" not in refused.stdout
        forward = ["ssh", "-N", "-R", f"*:15001:127.0.0.1:{far.server_address[1]}", *options]
        connection = subprocess.Popen(forward, stdin=subprocess.DEVNULL)
        try:
            until(lambda: "far side" in podman("exec", container, "bash", "-c", _ASK).stdout, container, 30)
        finally:
            connection.terminate()
            connection.wait()
            far.shutdown()
        assert podman("exec", container, "id", "-u").stdout.strip() == "10001"
